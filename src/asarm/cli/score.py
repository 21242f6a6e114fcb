"""Exact log-likelihoods of what fills the gaps of a text: `python -m asarm score "The cat ___ home." walked "ran away"`

Prints for each candidate the joint log-density of the gap's tokens given the rest of the text, in nats, their number,
the perplexity of a token, and the text; the likeliest first. For a text with several gaps a candidate's parts are
separated by ___. Gaps, and underscores that are none, are written as for `infill`. With --given and --filled, two files
of as many texts, one a line or the field `text` of JSON lines, it prints a line for each text, in their order.
"""

import json
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass

from asarm.cli.presets import given_options
from asarm.filling.files import texts_of
from asarm.filling.infiller import CAPACITY, MODEL, Infiller, default_model
from asarm.filling.scoring import Score, candidate_parts, filled_batch, parts_of, scores_of
from asarm.models.config import LoadingOptions
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.transforms import Transforms
from asarm.utils.config import OptionParser, check, check_at_least, from_options, nested, option, options_of
from asarm.utils.errors import InputError
from asarm.utils.logging_setup import quiet_libraries


@dataclass
class ScoreConfig:
    """What is scored, by which model."""

    given: str = option("", "file of texts with gaps (___)")
    filled: str = option("", "file of the same texts with their gaps filled")
    loading: LoadingOptions = nested(LoadingOptions, model=MODEL, compile="off")
    open_gaps: bool = option(False, "gaps of unknown length: the model has to end them, too; for models that can")
    gap_tokens: int = option(CAPACITY, "with open_gaps, the most tokens that a gap may take")
    batch_size: int = option(8, "texts in one evaluation of the network")

    def __post_init__(self) -> None:
        check_at_least(self, batch_size=1, gap_tokens=1)
        check(bool(self.given) == bool(self.filled), "given and filled belong together: two files")


def parse_arguments(arguments: list[str]) -> tuple[ScoreConfig, Transforms, Namespace]:
    """The two configurations, and a namespace with text (or None), candidates and json."""
    parser = OptionParser((options_of(ScoreConfig), Transforms), prog="asarm score", description=__doc__)
    parser.add_argument("text", nargs="?", help="a text with gaps, in quotes")
    parser.add_argument("candidates", nargs="*", help="what may stand in the gaps, each in quotes")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    options, transforms, extra = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    config = from_options(ScoreConfig, **vars(options))
    check(
        bool(config.given) == (extra.text is None) and (extra.text is None or bool(extra.candidates)),
        "give a text with gaps and candidates for them, in quotes, or --given FILE --filled FILE",
    )
    return config, transforms, extra


def texts_and_parts(config: ScoreConfig, extra: Namespace) -> list[tuple[str, str, list[str]]]:
    """Of each text to be scored: its name for messages, the text with gaps, and what stands in these."""
    if extra.text is not None:
        return [(repr(one), extra.text, candidate_parts(extra.text, one)) for one in extra.candidates]
    given, filled = texts_of(config.given, lines=True), texts_of(config.filled, lines=True)
    if len(given) != len(filled):
        raise InputError(f"{config.given} has {len(given)} texts, {config.filled} {len(filled)}: give as many")
    found = []
    for (_, text), (where, whole) in zip(given, filled, strict=True):
        try:
            found.append((where, text, parts_of(text, whole)))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return found


def main(arguments: list[str]) -> None:
    config, transforms, extra = parse_arguments(arguments)
    rows = texts_and_parts(config, extra)
    quiet_libraries()
    if "--model" not in given_options(arguments):
        config.loading.model = default_model()
    infiller = Infiller(*config.loading.load())
    if config.open_gaps and not infiller.open_gaps:
        raise InputError(f"{config.loading.model} has no token that ends a gap: leave out open_gaps")
    batches: list[InfillBatch] = []
    for where, text, parts in rows:
        try:
            capacity = config.gap_tokens if config.open_gaps else 0
            batches.append(filled_batch(infiller.codec, text, parts, capacity))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    found: Iterable[tuple[Score, InfillBatch]]
    found = zip(scores_of(infiller, batches, transforms, config.batch_size), batches, strict=True)
    if extra.text is not None:
        found = sorted(found, key=lambda one: -one[0].log_prob)
    for score, batch in found:
        text = infiller.codec.decode(batch.tokens[0].tolist())
        if extra.json:
            values = {"log_prob": score.log_prob, "tokens": score.tokens, "perplexity": score.perplexity, "text": text}
            print(json.dumps(values, ensure_ascii=False))
        else:
            print(f"{score.log_prob:12.4f} nats {score.tokens:5} tokens  perplexity {score.perplexity:10.3f}  {text}")
