"""`Infiller`: a model that fills the gaps of texts; `infill`, the same in one call; and `Filling`, what comes out."""

import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch

from asarm.filling.render_trace import frames
from asarm.models.backbone import AnyOrderModel
from asarm.models.compiled import CompiledModel
from asarm.models.conversion.smollm2 import smollm2_folder
from asarm.models.load import bundled_model_path, load_on_device, pick_device
from asarm.objective.loss import log_prob
from asarm.sampling import SampleResult, TraceStep, sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.constraints import ids_of_words, tokens_that_match
from asarm.tokenization.gaps import Span, label_spans, parse_gaps
from asarm.tokenization.transforms import TokenIds
from asarm.utils.config import check
from asarm.utils.errors import InputError

MODEL, SMALL_MODEL = "smollm2-text", "tiny-text"
GAP_TOKENS, CAPACITY = 8, 24
MOST_SEEDS = 2**63


@dataclass
class Filling:
    """A text whose gaps were filled.

    spans: its text, cut into what was given ("prompt") and what was filled in ("filled"). tokens: N ids; target: which
    of them were filled in. log_prob: exact joint log-density of these given the others under the model itself, without
    transforms, in nats; None where it was not asked for. targets: tokens drawn. nfe: function evaluations. proposed,
    accepted: drafts verified and accepted, by index in the window. seconds: of the batch that it was filled in. trace:
    its steps, if asked for.
    """

    text: str
    spans: list[Span]
    tokens: list[int]
    target: list[bool] = field(repr=False)
    log_prob: float | None
    seed: int
    targets: int
    nfe: int
    proposed: list[int] = field(repr=False)
    accepted: list[int] = field(repr=False)
    seconds: float
    trace: list[TraceStep] | None = field(default=None, repr=False)


@dataclass
class Partial:
    """A text while it is being filled, after one step.

    step: what was drafted and decided in it. spans: the text, whose labels are those of
    `asarm.filling.render_trace.frames`. filling: the result, with the last step.
    """

    step: TraceStep
    spans: list[Span]
    filling: Filling | None = None

    @property
    def text(self) -> str:
        """The text without rejected drafts; an open position is ` _`."""
        return "".join(span.text for span in self.spans if span.label != "rejected")


class Infiller:
    """A model and its codec, to fill the gaps of texts. Made once, it fills as many as one likes."""

    def __init__(self, model: AnyOrderModel | CompiledModel, codec: TextCodec, gap_tokens: int | None = None):
        """gap_tokens: of a gap without a number; if the model chooses its length, the most it may take."""
        check(gap_tokens is None or gap_tokens >= 1, f"gap_tokens must be at least 1, not {gap_tokens}")
        self.model, self.codec = model, codec
        self.open_gaps = model.config.gap_end_token_id is not None
        self.gap_tokens = gap_tokens or (CAPACITY if self.open_gaps else GAP_TOKENS)

    @classmethod
    def from_pretrained(
        cls, name: str | None = None, gap_tokens: int | None = None, device: str = "auto", dtype: str = "auto"
    ) -> "Infiller":
        """name: as of `asarm.load`; None is `default_model()`. device, dtype: as of the commands."""
        return cls(*load_on_device(name or default_model(), None, "auto", pick_device(device), dtype), gap_tokens)

    def parse(self, text: str) -> InfillBatch:
        """A text with gaps (see `parse_gaps`) as a batch of one."""
        longest = getattr(self.model.config, "n_positions", None)
        return parse_gaps(text, self.codec, self.gap_tokens, longest, self.open_gaps)

    def config(self, bad_words: Sequence[str] = (), **options: Any) -> SamplerConfig:
        """Settings of a sampler, fused by default. bad_words: texts that are not written, beside `bad_words_ids`."""
        return self.for_text(SamplerConfig(**{"sampler": "fused"} | options), bad_words)

    def for_text(self, config: SamplerConfig, bad_words: Sequence[str] = ()) -> SamplerConfig:
        """The settings with which this model fills gaps in texts: without the ids of some words, as it writes them, and
        without special tokens, such as the end of a document."""
        ids = map(TokenIds, ids_of_words(self.codec, bad_words))
        return replace(
            config,
            bad_words_ids=[*config.bad_words_ids, *ids],
            suppress_tokens=[*config.suppress_tokens, *self.codec.textless()],
        )

    def allowed(self, pattern: str) -> torch.Tensor | None:
        """[1, 1, V] bool, the tokens that match a regular expression as a whole; None, which is all, for ""."""
        if not pattern:
            return None
        return tokens_that_match(self.codec, pattern, self.model.config.vocab_size)[None, None].to(self.model.device)

    def fill(
        self,
        batches: Sequence[InfillBatch],
        config: SamplerConfig,
        seeds: Sequence[int],
        num_return_sequences: int = 1,
        best_of: int = 0,
        allowed: torch.Tensor | None = None,
        trace: bool = False,
        with_log_prob: bool = False,
    ) -> list[list[Filling]]:
        """The texts of `parse`, filled together: num_return_sequences fillings of each.

        seeds: of each text, the first; its samples have this one and those after it. best_of: draw as many samples of
        each text, and return those with the highest joint density, the best one first; 0 to return all, in order of
        their seeds. allowed: [1 or texts, 1 or N, V] bool, as in `asarm.sampling.sample`. with_log_prob: compute
        `Filling.log_prob`, one more evaluation of the network.
        """
        check_samples(config, num_return_sequences, best_of)
        count = best_of or num_return_sequences
        batch = padded_together(batches).to(self.model.device)
        batch = InfillBatch(*(one.repeat_interleave(count, dim=0) for one in batch))
        every = [seed + index for seed in seeds for index in range(count)]
        check(max(every) < MOST_SEEDS, f"seed must be below 2**63 with all samples, not {max(seeds)}")
        if allowed is not None:
            allowed = allowed.expand(len(allowed), batch.tokens.shape[1], -1)
            allowed = allowed.repeat_interleave(count, dim=0) if len(allowed) > 1 else allowed
        result = sample(self.model, *batch, config, every, trace=trace, allowed=allowed)
        scores = self.scores(batch, result) if with_log_prob or best_of else [None] * len(every)
        lengths = [len(one.tokens[0]) for one in batches for _ in range(count)]
        filled = [
            self._filling(batch, result, row, seed, score, length)
            for row, (seed, score, length) in enumerate(zip(every, scores, lengths, strict=True))
        ]
        groups = [filled[start : start + count] for start in range(0, len(filled), count)]
        if best_of:
            groups = [sorted(group, key=lambda one: -(one.log_prob or 0.0)) for group in groups]
        return [group[:num_return_sequences] for group in groups]

    def scores(self, batch: InfillBatch, result: SampleResult) -> list[float]:
        """Exact joint log-density (nats) of each filled row."""
        filled = batch._replace(tokens=result.tokens)
        rows = range(len(filled.tokens))
        return [float(log_prob(self.model, *filled.select(slice(row, row + 1))).double().sum()) for row in rows]

    def _filling(
        self, batch: InfillBatch, result: SampleResult, row: int, seed: int, score: float | None, length: int
    ) -> Filling:
        tokens, target = result.tokens[row, :length].tolist(), batch.target[row, :length].tolist()
        spans = label_spans(self.codec, tokens, ["filled" if is_target else "prompt" for is_target in target])
        return Filling(
            text="".join(span.text for span in spans),
            spans=spans,
            tokens=tokens,
            target=target,
            log_prob=score,
            seed=seed,
            targets=int(result.targets[row]),
            nfe=int(result.nfe[row]),
            proposed=result.proposed[row].tolist(),
            accepted=result.accepted[row].tolist(),
            seconds=result.seconds,
            trace=result.trace[row] if result.trace else None,
        )

    def stream(
        self, text: str, config: SamplerConfig, seed: int = 0, allowed: torch.Tensor | None = None
    ) -> Iterator[Partial]:
        """Fill one text, and yield it after each step, as it is decided. Whoever stops early stops the decoding."""
        batch = self.parse(text).to(self.model.device)
        if allowed is not None:
            allowed = allowed.expand(1, batch.tokens.shape[1], -1)
        arrived: queue.Queue[TraceStep | SampleResult | BaseException] = queue.Queue()
        stopped = threading.Event()

        def report(row: int, step: TraceStep) -> None:
            if stopped.is_set():
                raise _StoppedError
            arrived.put(step)

        def decode() -> None:
            try:
                arrived.put(sample(self.model, *batch, config, [seed], trace=report, allowed=allowed))
            except BaseException as error:  # goes on in the thread that iterates
                arrived.put(error)

        tokens, target = batch.tokens[0].tolist(), batch.target[0].tolist()
        steps: list[TraceStep] = []

        def arriving() -> Iterator[TraceStep]:
            while isinstance(step := arrived.get(), TraceStep):
                for position, token in zip(step.positions[: step.accepted], step.drafts, strict=False):
                    tokens[position] = token
                for position, token in step.added:
                    tokens[position] = token
                steps.append(step)
                yield step
            ends.append(step)

        ends: list[SampleResult | BaseException] = []
        thread = threading.Thread(target=decode, daemon=True)
        thread.start()
        last: Partial | None = None
        try:
            for spans in frames(self.codec, tokens, target, arriving()):
                if last is not None:
                    yield last
                last = Partial(steps[-1], spans)
            if isinstance(ends[0], BaseException):
                raise ends[0]
            assert last is not None  # every text has a target
            score = self.scores(batch, ends[0])[0]
            last.filling = self._filling(batch, ends[0], 0, seed, score, len(tokens))
            yield last
        finally:
            stopped.set()
            thread.join()


class _StoppedError(Exception):
    """Ends a decoding whose results nobody wants any more."""


@overload
def infill(text: str, model: str | Infiller | None = None, **options: Any) -> list[Filling]: ...


@overload
def infill(text: Sequence[str], model: str | Infiller | None = None, **options: Any) -> list[list[Filling]]: ...


def infill(
    text: str | Sequence[str],
    model: str | Infiller | None = None,
    *,
    num_return_sequences: int = 1,
    best_of: int = 0,
    seed: int = 0,
    gap_tokens: int | None = None,
    batch_size: int = 8,
    bad_words: Sequence[str] = (),
    allowed: str = "",
    trace: bool = False,
    **options: Any,
) -> Any:
    """Fill the gaps (`___`) of a text, or of several texts: a list of `Filling` for each text.

        asarm.infill("Once upon a time ___ lived in a ___5.", sampler="fused", top_p=0.9)[0].text

    model: a name as of `asarm.load`, an `Infiller` (which stays loaded), or None for `default_model()`.
    num_return_sequences, best_of, trace: as in `Infiller.fill`. seed: the texts are functions of it; those after the
    first have the seeds after its. gap_tokens: as of `Infiller`. batch_size: texts filled together. bad_words: texts
    that are not written. allowed: a regular expression that every filled token's text matches. options: those of
    `SamplerConfig`, such as sampler ("fused" by default), k, temperature, top_p.

    Raises InputError for texts and options that cannot be used.
    """
    if isinstance(model, Infiller):
        check(gap_tokens is None, "gap_tokens belongs to the Infiller that is given")
        infiller = model
    else:
        infiller = Infiller.from_pretrained(model, gap_tokens)
    check(seed >= 0, f"seed must be at least 0, not {seed}")
    check(batch_size >= 1, f"batch_size must be at least 1, not {batch_size}")
    config, mask = infiller.config(bad_words, **options), infiller.allowed(allowed)
    texts = [text] if isinstance(text, str) else list(text)
    batches = [infiller.parse(one) for one in texts]
    count = best_of or num_return_sequences
    found: list[list[Filling]] = []
    for start in range(0, len(batches), batch_size):
        some = batches[start : start + batch_size]
        seeds = [seed + (start + index) * count for index in range(len(some))]
        found += infiller.fill(some, config, seeds, num_return_sequences, best_of, mask, trace, with_log_prob=True)
    return found[0] if isinstance(text, str) else found


def check_samples(config: SamplerConfig, num_return_sequences: int, best_of: int) -> None:
    """Raise InputError for numbers of samples that cannot be."""
    check(num_return_sequences >= 1, f"num_return_sequences must be at least 1, not {num_return_sequences}")
    check(
        best_of == 0 or best_of >= num_return_sequences,
        f"best_of must be at least num_return_sequences, {num_return_sequences}, or 0, not {best_of}",
    )
    check(
        config.temperature > 0 or config.sampler == "parallel" or max(best_of, num_return_sequences) == 1,
        f"temperature 0 gives one text, not {max(best_of, num_return_sequences)}: sample at a higher temperature",
    )


def padded_together(batches: Sequence[InfillBatch]) -> InfillBatch:
    """Batches of one row each as one batch, padded at the end."""
    longest = max(batch.tokens.shape[1] for batch in batches)

    def together(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts])

    return InfillBatch(*(together(parts) for parts in zip(*batches, strict=True)))


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
