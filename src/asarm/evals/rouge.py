"""ROUGE F1 of a text against the right one, as `rouge_score` counts it."""

from functools import cache

MEASURES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


@cache
def _scorer():
    from rouge_score.rouge_scorer import RougeScorer  # slow to import
    from rouge_score.tokenizers import DefaultTokenizer

    return RougeScorer(list(MEASURES), tokenizer=DefaultTokenizer(use_stemmer=False))


def rouge(gold: str, text: str) -> dict[str, float]:
    """F1 x 100 of words, of pairs of words, and of the longest common subsequence; lower case, without stemming."""
    return {name: 100 * score.fmeasure for name, score in _scorer().score(gold, text).items()}
