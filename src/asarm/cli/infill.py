"""Fill the gaps of a text: `python -m asarm infill "Once upon a time ___ lived in a ___5."`

`___` is a gap; a number right after it gives its length in tokens. Several gaps are filled together. Without a number
the model chooses the length, if it can, and else it is --gap_tokens.
"""

import json
import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from typing import cast

from rich.console import Console
from rich.text import Text

from asarm.cli.presets import given_options
from asarm.data.rows import decode, plain_text
from asarm.evals.infilling.render_trace import show_trace
from asarm.models.backbone import AnyOrderModel
from asarm.models.compiled import CompiledModel, compiled_for_decoding
from asarm.models.config import LoadingOptions
from asarm.models.conversion.smollm2 import smollm2_folder
from asarm.models.load import bundled_model_path
from asarm.sampling import SampleResult, sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import Span, label_spans, parse_gaps
from asarm.utils.config import OptionParser, check_at_least, flat, from_options, nested, option, options_of
from asarm.utils.errors import InputError
from asarm.utils.logging_setup import quiet_libraries

MODEL, SMALL_MODEL = "smollm2-text", "tiny-text"
GAP_TOKENS, CAPACITY = 8, 24


@dataclass
class InfillConfig:
    """What to fill, and with which model."""

    file: str = option("", "read the text from this UTF-8 file, as it is")
    loading: LoadingOptions = nested(LoadingOptions, model=MODEL, compile="off")  # compiling is slow to begin
    gap_tokens: int | None = option(
        None,
        f"tokens of a gap without a number, {GAP_TOKENS} by default; if the model chooses its length, the most it may "
        f"take, by default {CAPACITY}",
    )
    seed: int = option(0, "the text is a function of the seed")
    samples: int = option(1, "texts to sample, in one batch, with the seeds seed, seed + 1, ...")

    def __post_init__(self) -> None:
        check_at_least(self, samples=1, seed=0)
        if self.gap_tokens is not None:
            check_at_least(self, gap_tokens=1)
        if self.seed + self.samples > 2**63:
            raise InputError(f"seed must be below 2**63 with all samples, not {self.seed}")


def parse_arguments(arguments: list[str]) -> tuple[InfillConfig, SamplerConfig, Namespace]:
    """The two configurations, and a namespace with text (or None), trace and json."""
    parser = OptionParser((options_of(InfillConfig), SamplerConfig), prog="asarm infill", description=__doc__)
    parser.set_defaults(sampler="fused")
    parser.add_argument("text", nargs="?", help="the text, in quotes; - reads it from the standard input")
    parser.add_argument("--trace", action="store_true", help="show the text growing, with every verdict on drafts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options, sampler, extra, rest = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)} (put the text in quotes)")
    return from_options(InfillConfig, **vars(options)), sampler, extra


def default_model() -> str:
    """The bundled adapter of SmolLM2, if that is here or can be had without waiting long; else the small bundled
    model, after a line that says why."""
    try:
        bundled_model_path(MODEL)
        smollm2_folder(patient=False)
    except InputError as error:
        print(f"filling with {SMALL_MODEL} instead of {MODEL}: {error}", file=sys.stderr)
        return SMALL_MODEL
    return MODEL


def input_text(text: str | None, file: str) -> str:
    """The text given, or that of the standard input or the file, without the newline that ends it."""
    if text is None and file:
        return plain_text(file).removesuffix("\n")
    if text is None or file:
        raise InputError("give one text, in quotes, or --file FILE, or - for the standard input")
    if text != "-":  # Python escapes the bytes of an argument that are not UTF-8
        return decode(text.encode("utf-8", "surrogateescape"), "the text")
    return decode(sys.stdin.buffer.read(), "the standard input").removesuffix("\n")


def fill(
    model: AnyOrderModel | CompiledModel, batch: InfillBatch, config: InfillConfig, sampler: SamplerConfig, trace: bool
) -> SampleResult:
    """`config.samples` samples for one text, drawn as a batch."""
    seeds = range(config.seed, config.seed + config.samples)
    return sample(model, *batch.repeat(config.samples).to(model.device), sampler, seeds, trace=trace)


def cost_line(result: SampleResult) -> str:
    """What all samples together cost."""
    targets, nfe = int(result.targets.sum()), int(result.nfe.sum())
    proposed, accepted = int(result.proposed.sum()), int(result.accepted.sum())
    drafts = f"{accepted} of {proposed} verified drafts accepted, " if proposed else ""
    texts = f"{len(result.tokens)} texts, " if len(result.tokens) > 1 else ""
    return f"{texts}{targets} targets, {nfe} NFE, {targets / nfe:.2f} tokens per NFE, {drafts}{result.seconds:.2f} s"


def filled_spans(codec: TextCodec, target: list[bool], tokens: list[int]) -> list[Span]:
    """The filled text, cut into what was given ("prompt") and what was filled in ("filled"). target, tokens: N each."""
    return label_spans(codec, tokens, ["filled" if is_target else "prompt" for is_target in target])


def print_text(console: Console, spans: list[Span]) -> None:
    """Print the filled text; on a terminal what was filled in is bold and underlined."""
    styles = {"prompt": "", "filled": "bold underline"}
    if console.is_terminal:
        console.print(Text.assemble(*((span.text, styles[span.label]) for span in spans)), soft_wrap=True)
    else:
        print("".join(span.text for span in spans), file=console.file)


def as_json(
    config: InfillConfig, sampler: SamplerConfig, codec: TextCodec, target: list[bool], result: SampleResult
) -> dict[str, object]:
    """Settings, cost and texts. target: [N], of the text that was filled."""
    samples = [
        {
            "seed": config.seed + row,
            "text": codec.decode(tokens),
            "spans": [span._asdict() for span in filled_spans(codec, target, tokens)],
            "tokens": tokens,
            "targets": int(result.targets[row]),
            "nfe": int(result.nfe[row]),
            "proposed": result.proposed[row].tolist(),
            "accepted": result.accepted[row].tolist(),
        }
        | ({"trace": [asdict(step) for step in result.trace[row]]} if result.trace else {})
        for row, tokens in enumerate(result.tokens.tolist())
    ]
    return {"infill": flat(config), "sampler": asdict(sampler), "seconds": result.seconds, "samples": samples}


def main(arguments: list[str]) -> None:
    config, sampler, extra = parse_arguments(arguments)
    text = input_text(extra.text, config.file)
    quiet_libraries()
    if "--model" not in given_options(arguments):
        config.loading.model = default_model()
    model, codec = config.loading.load()
    can_end = model.config.gap_end_token_id is not None
    config = replace(config, gap_tokens=config.gap_tokens or (CAPACITY if can_end else GAP_TOKENS))
    longest = getattr(model.config, "n_positions", None)
    batch = parse_gaps(text, codec, cast(int, config.gap_tokens), longest, can_end)
    result = fill(compiled_for_decoding(model, config.loading.compile), batch, config, sampler, extra.trace)
    target = batch.target[0].tolist()
    if extra.json:
        print(json.dumps(as_json(config, sampler, codec, target, result), ensure_ascii=False, indent=2))
        return
    console = Console(highlight=False)
    for row, tokens in enumerate(result.tokens.tolist()):
        if config.samples > 1:
            console.print(f"--- seed {config.seed + row}", style="dim")
        if result.trace:
            show_trace(console, codec, tokens, target, result.trace[row])
        print_text(console, filled_spans(codec, target, tokens))
    print(cost_line(result), file=sys.stderr)
