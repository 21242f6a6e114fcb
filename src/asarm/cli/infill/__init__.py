r"""Fill the gaps of a text: `python -m asarm infill "Once upon a time ___ lived in a ___5."`

`___` is a gap; a number right after it gives its length in tokens. Several gaps are filled together. Without a number
the model chooses the length, if it can, and else it is --gap_tokens. Underscores that are no gap are written `\___`,
a digit right after a gap that is none of its number `___\5`, and a backslash right before a gap `\\___`.

--file fills a file: plain text as one text (with --lines each line is one), the field `text` of JSON lines, CSV or
parquet row by row. --output adds a JSON line a text, and goes on with what an interrupted run has left.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from asarm.cli.infill.printing import as_json, cost_line, print_text
from asarm.cli.presets import given_options
from asarm.data.rows import decode
from asarm.filling.files import fill_file, parsed, texts_of
from asarm.filling.infiller import (
    CAPACITY,
    GAP_TOKENS,
    MODEL,
    MOST_SEEDS,
    Filling,
    Infiller,
    check_samples,
    default_model,
)
from asarm.filling.page import comparison_page
from asarm.filling.render_trace import show_trace
from asarm.filling.server import Page, listening, serve
from asarm.models.compiled import compiled_for_decoding
from asarm.models.config import LoadingOptions
from asarm.sampling.config import SamplerConfig
from asarm.utils.config import OptionParser, check, check_at_least, flat, from_options, nested, option, options_of
from asarm.utils.errors import InputError
from asarm.utils.files import write_text
from asarm.utils.logging_setup import quiet_libraries


@dataclass
class InfillConfig:
    """What to fill, and with which model."""

    file: str = option("", "read the text, or texts, from this UTF-8 file")
    lines: bool = option(False, "each line of a plain --file is a text")
    output: str = option("", "write the fillings of --file to this file, a JSON line a text")
    batch_size: int = option(8, "texts of --file that are filled together")
    loading: LoadingOptions = nested(LoadingOptions, model=MODEL)
    gap_tokens: int | None = option(
        None,
        f"tokens of a gap without a number, {GAP_TOKENS} by default; if the model chooses its length, the most it may "
        f"take, by default {CAPACITY}",
    )
    seed: int = option(0, "the text is a function of the seed")
    samples: int = option(
        1, "texts to sample, in one batch, with the seeds seed, seed + 1, ...", "--num_return_sequences"
    )
    best_of: int = option(0, "draw so many samples, and print those with the highest joint density, the best one first")
    bad_words: list[str] = option([], "texts that are not written, as this tokenizer writes them")
    allowed: str = option("", "a regular expression that the text of every filled token, its space included, matches")

    def __post_init__(self) -> None:
        check_at_least(self, samples=1, seed=0, best_of=0, batch_size=1)
        if self.gap_tokens is not None:
            check_at_least(self, gap_tokens=1)
        if self.seed + max(self.samples, self.best_of) > MOST_SEEDS:
            raise InputError(f"seed must be below 2**63 with all samples, not {self.seed}")
        check(not self.lines or bool(self.file), "lines belongs to --file")
        check(not self.output or bool(self.file), "output is for the texts of --file")


def parse_arguments(arguments: list[str]) -> tuple[InfillConfig, SamplerConfig, Namespace]:
    """The two configurations, and a namespace with text (or None), trace, json, html, serve and port."""
    parser = OptionParser((options_of(InfillConfig), SamplerConfig), prog="asarm infill", description=__doc__)
    parser.set_defaults(sampler="fused")
    parser.add_argument("text", nargs="?", help="the text, in quotes; - reads it from the standard input")
    parser.add_argument("--trace", action="store_true", help="show the text growing, with every verdict on drafts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", help="write a page that plays the decoding, beside that of the sequential sampler")
    parser.add_argument("--serve", action="store_true", help="a local page with a text box; no text is needed")
    parser.add_argument("--port", type=int, default=8000, help="of --serve, on this machine only")
    options, sampler, extra, rest = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)} (put the text in quotes)")
    config = from_options(InfillConfig, **vars(options))
    check_samples(sampler, config.samples, config.best_of)
    check(1 <= extra.port <= 65535, f"port must lie in 1..65535, not {extra.port}")
    if extra.serve:
        used = extra.text is not None or config.file or extra.html or extra.json or extra.trace
        check(not used, "serve takes its texts from the page: leave out text, --file, --html, --json and --trace")
    return config, sampler, extra


def input_texts(text: str | None, config: InfillConfig) -> list[tuple[str, str]]:
    """The texts given, or of the standard input or the file, without the newline that ends them; and their names."""
    if text is None and config.file:
        return texts_of(config.file, config.lines)
    if text is None or config.file:
        raise InputError("give one text, in quotes, or --file FILE, or - for the standard input")
    if text != "-":  # Python escapes the bytes of an argument that are not UTF-8
        return [("the text", decode(text.encode("utf-8", "surrogateescape"), "the text"))]
    return [("the text", decode(sys.stdin.buffer.read(), "the standard input").removesuffix("\n"))]


def main(arguments: list[str]) -> None:
    config, sampler, extra = parse_arguments(arguments)
    if "--model" not in given_options(arguments):
        config.loading.model = ""
    quiet_libraries()
    if extra.serve:
        with listening(extra.port) as server:  # before the model is loaded, which takes long
            infiller, sampler, allowed = loaded(config, sampler)
            serve(server, Page(infiller, sampler, allowed, config.seed))
    else:
        fill_texts(config, sampler, extra, input_texts(extra.text, config))


def loaded(config: InfillConfig, sampler: SamplerConfig) -> tuple[Infiller, SamplerConfig, torch.Tensor | None]:
    """The model, which is the default one if none is named; the settings with the bad words; the allowed tokens."""
    config.loading.model = config.loading.model or default_model()
    model, codec = config.loading.load()
    infiller = Infiller(compiled_for_decoding(model, config.loading.compile), codec, config.gap_tokens)
    config.gap_tokens = infiller.gap_tokens
    return infiller, infiller.for_text(sampler, config.bad_words), infiller.allowed(config.allowed)


def fill_texts(config: InfillConfig, sampler: SamplerConfig, extra: Namespace, texts: list[tuple[str, str]]) -> None:
    """Fill the texts, and print them or write them to the output."""
    many = len(texts) > 1 or bool(config.output)
    check(not (many and extra.html), "html is for one text, without --output")
    infiller, sampler, allowed = loaded(config, sampler)
    batches = [infiller.parse(texts[0][1])] if len(texts) == 1 else parsed(infiller, texts)
    count = config.best_of or config.samples
    trace = extra.trace or bool(extra.html)

    def fill(indices: Sequence[int]) -> list[list[Filling]]:
        some, seeds = [batches[index] for index in indices], [config.seed + index * count for index in indices]
        log_prob = bool(config.output)
        return infiller.fill(some, sampler, seeds, config.samples, config.best_of, allowed, trace, log_prob)

    if many:
        settings = {name: value for name, value in flat(config).items() if name not in ("output", "batch_size")}
        every = fill_file(texts, fill, config.batch_size, config.output, settings | flat(sampler))
        for _, fillings in every:
            if not config.output:
                show(infiller, config, sampler, extra, fillings, cost=False)
        if config.output:
            print(f"{len(texts)} texts: {config.output}", file=sys.stderr)
        return
    (fillings,) = fill([0])
    show(infiller, config, sampler, extra, fillings, cost=True)
    if extra.html:
        page = comparison_page(infiller, texts[0][1], sampler, fillings[0], allowed)
        write_text(Path(extra.html), page)
        print(f"the decoding, to be played in a browser: {extra.html}", file=sys.stderr)


def show(
    infiller: Infiller, config: InfillConfig, sampler: SamplerConfig, extra: Namespace, fillings: list[Filling],
    cost: bool,
) -> None:  # fmt: skip
    """Print the fillings of one text. cost: what they cost, too."""
    if extra.json:
        print(json.dumps(as_json(config, sampler, fillings), ensure_ascii=False, indent=2 if cost else None))
        return
    console = Console(highlight=False)
    for one in fillings:
        if len(fillings) > 1 or config.best_of:
            score = "" if one.log_prob is None else f", {one.log_prob:.2f} nats"
            console.print(f"--- seed {one.seed}{score}", style="dim")
        if one.trace and extra.trace:
            show_trace(console, infiller.codec, one.tokens, one.target, one.trace)
        print_text(console, one.spans)
    if cost:
        print(cost_line(fillings), file=sys.stderr)
