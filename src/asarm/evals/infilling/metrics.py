"""Metrics that the evaluations on stories and code share: how long gaps are, and what they take."""

from asarm.evals.stats import mean_sd


def words_in(text: str) -> int:
    """Words of a text: what white space separates."""
    return len(text.split())


def spread(lines: list[dict]) -> dict[str, dict]:
    """{quantity: its mean, standard deviation and n over all gaps and trials}.

    tokens, words: of what was filled in. gold_tokens, gold_words: of the right texts. nfe: function evaluations. Those
    in tokens are left out for what has none.
    """
    fields = {"words": "words", "gold_words": "gold_words"}
    if all(line["length"] is not None for line in lines):
        fields |= {"tokens": "length", "gold_tokens": "gold_length", "nfe": "nfe"}
    return {name: mean_sd([line[field] for line in lines]) for name, field in fields.items()}
