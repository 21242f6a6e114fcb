"""Decoding steps of static shape, so that `torch.compile` and CUDA graphs can replay them.

The time of a decoding step is that of launching its kernels, then that of reading the weights: more rows cost next to
nothing. So tokens, queries and rows are padded to powers of two, and all slots of the cache are read. The few shapes
that remain are compiled once and, on a GPU, recorded as CUDA graphs. Long prompts are read without compilation.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F

from asarm.models.backbone import AnyOrderModel
from asarm.models.draft_head import DraftHead
from asarm.models.kv_cache import KeyValueCache
from asarm.utils.errors import InputError

logger = logging.getLogger(__name__)
CHOICES = ("auto", "on", "off")
MIN_WIDTH, MAX_TOKENS, MAX_QUERIES = 2, 32, 64  # compilers specialise on width 1; above the maxima it is no step
SLOTS = 64  # capacities are rounded up to a multiple, so that sequences of similar lengths share compiled steps


def compiled_for_decoding(model: AnyOrderModel, choice: str = "auto") -> "AnyOrderModel | CompiledModel":
    """The model, its decoding steps compiled if choice is "on", or "auto" and the model is on a GPU.

    Samplers use the result instead of the model; its weights must not change from then on. Raises InputError for
    another choice.
    """
    if choice not in CHOICES:
        raise InputError(f"compile must be one of {', '.join(CHOICES)}, not {choice!r}")
    wanted = choice == "on" or (choice == "auto" and model.device.type == "cuda")
    return CompiledModel(model) if wanted else model


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


class PaddedCache:
    """The first rows of a static cache whose batch is a power of two; the other rows are scratch.

    lengths: [B] int64, of the real rows.
    """

    def __init__(self, owner: "CompiledModel", batch: int, capacity: int, span: int):
        self.owner, self.capacity, self.span = owner, capacity, span
        self.inner = owner.static_cache(power_of_two(batch), capacity, span)
        self.set_lengths(torch.zeros(batch, dtype=torch.long, device=owner.device))

    def set_lengths(self, lengths: torch.Tensor) -> None:
        """As in `KeyValueCache`."""
        self.lengths = lengths.clone()
        self.inner.lengths[: len(lengths)] = lengths  # in place: a recorded graph reads them at this address
        self.inner.lengths[len(lengths) :] = 0

    def keep_rows(self, rows: torch.Tensor) -> None:
        """As in `KeyValueCache`; the rows move to a smaller cache when they fit in one."""
        if len(rows) > 0:
            smaller = self.owner.static_cache(power_of_two(len(rows)), self.capacity, self.span)
            for old, new in zip(self.inner.row_tensors(), smaller.row_tensors(), strict=True):
                new[: len(rows)] = old[rows]
            self.inner = smaller
        self.set_lengths(self.lengths[rows])


class CompiledModel:
    """What samplers use instead of a model (see `compiled_for_decoding`). One batch is decoded at a time."""

    def __init__(self, model: AnyOrderModel):
        self.model, self.config, self.device = model, model.config, model.device
        # Shapes are symbolic: one compilation serves all of them. On a GPU each is also recorded as a CUDA graph.
        self.mode = "reduce-overhead" if model.device.type == "cuda" else "default"
        self.step: Any = torch.compile(model.hidden, dynamic=True, fullgraph=True, mode=self.mode)
        self.caches: dict[tuple[int, int, int], KeyValueCache] = {}

    def static_cache(self, batch: int, capacity: int, span: int) -> KeyValueCache:
        """The static cache of this shape: always the same one, since recorded graphs know it by its address."""
        if any(key[1:] != (capacity, span) for key in self.caches):
            self.caches.clear()  # left by sequences of other lengths
        if (batch, capacity, span) not in self.caches:
            cache = self.model.new_cache(batch, capacity, span, static=True)
            for tensor in cache.row_tensors():
                torch._dynamo.mark_static_address(tensor, guard=False)  # else its mutation would rule out CUDA graphs
            self.caches[batch, capacity, span] = cache
        return self.caches[batch, capacity, span]

    def new_cache(self, batch: int, capacity: int, span: int) -> PaddedCache:
        """As in `AnyOrderModel`."""

        def rounded(number: int) -> int:
            return -(-number // SLOTS) * SLOTS

        return PaddedCache(self, batch, rounded(capacity), rounded(span))

    def never_sampled(self) -> list[slice]:
        """As in `AnyOrderModel`."""
        return self.model.never_sampled()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As in `AnyOrderModel`."""
        return self.model.logits(hidden)

    @property
    def draft_head(self) -> DraftHead | None:
        """As in `AnyOrderModel`."""
        return self.model.draft_head

    def draft_logits(self, states: torch.Tensor) -> torch.Tensor:
        """As in `AnyOrderModel`."""
        return self.model.draft_logits(states)

    def follow(self, states: torch.Tensor, left: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """As in `AnyOrderModel`."""
        return self.model.follow(states, left, previous)

    def __call__(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """As in `AnyOrderModel`."""
        return self.logits(self.hidden(*arguments, **keywords))

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        content_context: torch.Tensor,
        query_positions: torch.Tensor,
        query_context: torch.Tensor,
        cache: PaddedCache | None = None,
    ) -> torch.Tensor:
        """As in `AnyOrderModel`; without a cache there is nothing to replay."""
        if cache is None:
            return self.model.hidden(tokens, positions, content_context, query_positions, query_context)
        batch, queries = query_positions.shape
        scratch_rows = len(cache.inner.lengths) - batch
        is_step = tokens.shape[1] <= MAX_TOKENS and queries <= MAX_QUERIES

        def padded(part: torch.Tensor, value: int) -> torch.Tensor:
            width = max(MIN_WIDTH, power_of_two(part.shape[1])) if is_step else part.shape[1]
            return F.pad(part, (0, width - part.shape[1], 0, scratch_rows), value=value)

        # Padding sees one slot, whatever it holds, and writes after the lengths.
        arguments = (
            padded(tokens, 0),
            padded(positions, 0),
            padded(content_context, 1),
            padded(query_positions, 0),
            padded(query_context, 1),
            cache.inner,
        )
        states = self.replay(arguments) if is_step else self.model.hidden(*arguments)
        return states[:batch, :queries]

    def replay(self, arguments: tuple[Any, ...]) -> torch.Tensor:
        """The compiled step; after the first failure of the compiler, the model itself."""
        if self.step is None:
            return self.model.hidden(*arguments)
        try:
            if self.mode == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()  # the states of the step before were used up
            return self.step(*arguments)
        except Exception as error:  # compilers raise exceptions of all kinds
            reason = str(error).strip().splitlines() or [type(error).__name__]
            logger.warning("decoding without torch.compile, which failed here: %s", reason[0])
            self.step = None
            return self.model.hidden(*arguments)


DecodingModel = AnyOrderModel | CompiledModel  # what samplers and scores take
