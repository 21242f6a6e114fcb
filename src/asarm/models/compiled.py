"""Decoding steps of static shape, so that `torch.compile` and CUDA graphs can replay them.

A decoding step is bound by the launching of its kernels, then by reading the weights: more rows cost next to nothing.
So tokens, queries and rows are filled up to powers of two, all slots of the cache are read, and the few shapes that
remain are compiled once and, on a GPU, recorded as CUDA graphs. Long prompts are read in the ordinary way.
"""

import logging

import torch
import torch.nn.functional as F

from asarm.models.kv_cache import KeyValueCache
from asarm.utils.errors import InputError

logger = logging.getLogger(__name__)
CHOICES = ("auto", "on", "off")
FEWEST, MOST_TOKENS, MOST_QUERIES = 2, 32, 64  # compilers make a case of its own of 1; more is no decoding step
SLOTS = 64  # capacities are rounded up to a multiple, so that texts of like lengths share what was compiled


def compiled_for_decoding(model, choice: str = "auto"):
    """The model, its decoding steps compiled if choice is "on", or "auto" and the model is on a GPU.

    Samplers take the result in the model's place; its weights must not change from then on. Raises InputError for
    another choice.
    """
    if choice not in CHOICES:
        raise InputError(f"compile must be one of {', '.join(CHOICES)}, not {choice!r}")
    wanted = choice == "on" or (choice == "auto" and model.device.type == "cuda")
    return CompiledModel(model) if wanted else model


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


class FilledCache:
    """The first rows of a static cache whose batch is a power of two; the others are scratch.

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
    """Stands in for a model in the samplers (see `compiled_for_decoding`). One batch is decoded at a time."""

    def __init__(self, model):
        self.model, self.config, self.device = model, model.config, model.device
        # Shapes are symbolic: one compilation serves all of them. On a GPU each is recorded as a CUDA graph besides.
        self.mode = "reduce-overhead" if model.device.type == "cuda" else "default"
        self.step = torch.compile(model.hidden, dynamic=True, fullgraph=True, mode=self.mode)
        self.caches: dict[tuple[int, int, int], KeyValueCache] = {}

    def static_cache(self, batch: int, capacity: int, span: int) -> KeyValueCache:
        """The static cache of this shape: always the same, for recorded graphs know it by its address."""
        if any(key[1:] != (capacity, span) for key in self.caches):
            self.caches.clear()  # those of other texts
        if (batch, capacity, span) not in self.caches:
            cache = self.model.new_cache(batch, capacity, span, static=True)
            for tensor in cache.row_tensors():
                torch._dynamo.mark_static_address(tensor, guard=False)  # else its changes would rule out CUDA graphs
            self.caches[batch, capacity, span] = cache
        return self.caches[batch, capacity, span]

    def new_cache(self, batch: int, capacity: int, span: int) -> FilledCache:
        def rounded(number: int) -> int:
            return -(-number // SLOTS) * SLOTS

        return FilledCache(self, batch, rounded(capacity), rounded(span))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As in `AnyOrderModel`."""
        return self.model.logits(hidden)

    @property
    def draft_head(self):
        """As in `AnyOrderModel`."""
        return self.model.draft_head

    def follow(self, states: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """As in `AnyOrderModel`."""
        return self.model.follow(states, left)

    def __call__(self, *arguments, **keywords) -> torch.Tensor:
        """As in `AnyOrderModel`."""
        return self.logits(self.hidden(*arguments, **keywords))

    def hidden(self, tokens, positions, content_context, query_positions, query_context, cache=None) -> torch.Tensor:
        """As in `AnyOrderModel`; without a cache there is nothing to replay."""
        if cache is None:
            return self.model.hidden(tokens, positions, content_context, query_positions, query_context)
        batch, queries = query_positions.shape
        inner = cache.inner
        rows = len(inner.lengths) - batch
        static = tokens.shape[1] <= MOST_TOKENS and queries <= MOST_QUERIES

        def filled(part: torch.Tensor, value: int) -> torch.Tensor:
            width = max(FEWEST, power_of_two(part.shape[1])) if static else part.shape[1]
            return F.pad(part, (0, width - part.shape[1], 0, rows), value=value)

        # What is filled in sees one slot, whatever it holds, and writes behind the lengths.
        arguments = (
            filled(tokens, 0),
            filled(positions, 0),
            filled(content_context, 1),
            filled(query_positions, 0),
            filled(query_context, 1),
            inner,
        )
        states = self.replay(arguments) if static else self.model.hidden(*arguments)
        return states[:batch, :queries]

    def replay(self, arguments) -> torch.Tensor:
        """The compiled step, or the model itself from the first failure of the compiler on."""
        if self.step is None:
            return self.model.hidden(*arguments)
        try:
            if self.mode == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()  # the states of the step before were used up
            return self.step(*arguments)
        except Exception as error:  # compilers raise everything there is
            reason = str(error).strip().splitlines() or [type(error).__name__]
            logger.warning("decoding without torch.compile, which failed here: %s", reason[0])
            self.step = None
            return self.model.hidden(*arguments)
