"""Decoding steps compiled as a whole, so that a GPU replays them as one CUDA graph and a CPU runs fused kernels.

The time of an eager step is that of launching its kernels, then that of reading the weights. A step (see
`asarm.sampling.decode_state`) has a fixed shape and waits for no value, so all of it is one graph: network, draft head,
random numbers, verification, and what is written to the state. The tensors of a state come from a pool, as a recorded
graph knows them by their addresses. Prompts are read without compilation: each has another length.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

from asarm.models.backbone import AnyOrderModel
from asarm.utils.errors import InputError

logger = logging.getLogger(__name__)
CHOICES = ("auto", "on", "off")
SLOTS = 64  # lengths are rounded up to a multiple, so that sequences of similar lengths share recorded steps
MOST_COMPILATIONS = 64  # of a step: for other samplers' settings, a single row or several, other windows


def compiled_for_decoding(model: AnyOrderModel, choice: str = "auto") -> "AnyOrderModel | CompiledModel":
    """The model, its decoding steps compiled if choice is "on", or "auto" and the model is on a GPU.

    Samplers use the result instead of the model; its weights must not change from then on. Raises InputError for
    another choice.
    """
    if choice not in CHOICES:
        raise InputError(f"compile must be one of {', '.join(CHOICES)}, not {choice!r}")
    wanted = choice == "on" or (choice == "auto" and model.device.type == "cuda")
    return CompiledModel(model) if wanted else model


def rounded(length: int) -> int:
    """The smallest multiple of SLOTS that is at least `length`."""
    return -(-length // SLOTS) * SLOTS


class CompiledModel:
    """What samplers use instead of a model (see `compiled_for_decoding`). One batch is decoded at a time."""

    def __init__(self, model: AnyOrderModel):
        self.model = model
        self.is_cuda = model.device.type == "cuda"
        self.steps: dict[Callable[..., torch.Tensor], Callable[..., torch.Tensor]] = {}
        self.fails = False  # the compiler
        self.pool: dict[Any, torch.Tensor] = {}
        self.pooled_length = 0

    def __getattr__(self, name: str) -> Any:
        """Everything else is the model's."""
        return getattr(self.model, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """As in `AnyOrderModel`."""
        return self.model(*arguments, **keywords)

    def run(self, step: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
        """What a step returns, compiled; after the first failure of the compiler, not compiled."""
        if self.fails:
            return step(*arguments)
        if step not in self.steps:
            # Shapes are symbolic: one compilation serves all lengths. On a GPU each is also recorded as a CUDA graph.
            mode = "reduce-overhead" if self.is_cuda else "default"
            self.steps[step] = torch.compile(step, dynamic=True, fullgraph=True, mode=mode)
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_COMPILATIONS):
                if not self.is_cuda:
                    return self.steps[step](*arguments)
                torch.compiler.cudagraph_mark_step_begin()
                return self.steps[step](*arguments).clone()  # the next step overwrites it
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise exceptions of all kinds
            reason = str(error).strip().splitlines() or [type(error).__name__]
            logger.warning("decoding without torch.compile, which failed here: %s", reason[0])
            self.fails = True
            return step(*arguments)

    def start_batch(self, length: int) -> None:
        """Tensors of other lengths are done with."""
        if length != self.pooled_length:
            self.pool.clear()
        self.pooled_length = length

    def adopt(self, owner: Any) -> None:
        """Move all tensors of an object to the pool: always the same addresses for the same attribute and shape."""
        kind = type(owner).__name__
        for name, value in vars(owner).items():
            if isinstance(value, torch.Tensor):
                setattr(owner, name, self._pooled((kind, name), value))
            elif isinstance(value, list) and value and all(isinstance(part, torch.Tensor) for part in value):
                setattr(owner, name, [self._pooled((kind, name, index), part) for index, part in enumerate(value)])

    def _pooled(self, name: tuple, value: torch.Tensor) -> torch.Tensor:
        key = (*name, value.shape, value.dtype)
        if key not in self.pool:
            self.pool[key] = torch.empty_like(value, memory_format=torch.contiguous_format)
            # A step overwrites it, which would rule out CUDA graphs at another address.
            torch._dynamo.mark_static_address(self.pool[key], guard=False)
        return self.pool[key] if self.pool[key] is value else self.pool[key].copy_(value)


DecodingModel = AnyOrderModel | CompiledModel  # what samplers and scores take
