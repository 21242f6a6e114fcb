"""Decoding steps without the time of launching their kernels: recorded as CUDA graphs, compiled, or both.

The time of an eager step on a GPU is that of launching its kernels, one after the other, and not that of reading the
weights. A step (see `asarm.sampling.decode_state`) has a fixed shape and waits for no value, so all of it can be
launched at once, as a CUDA graph: network, draft head, random numbers, verification, and what is written to the state.
A recording takes no longer than the step. `torch.compile` makes fewer kernels of a step, which on CPUs pays, too, but
takes about a minute. The tensors of a state come from a pool, as a recording knows them by their addresses. Prompts are
neither recorded nor compiled: each has another length.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from asarm.models.backbone import AnyOrderModel
from asarm.utils.errors import InputError, first_line

logger = logging.getLogger(__name__)
CHOICES = ("auto", "on", "off")
SLOTS = 64  # lengths are rounded up to a multiple, so that sequences of similar lengths share recorded steps
MOST_COMPILATIONS = 64  # of a step: for other samplers' settings, a single row or several, other windows
MOST_RECORDINGS = 256
PLAIN = (bool, int, float, str, type(None))

Step = Callable[..., torch.Tensor]


def compiled_for_decoding(model: AnyOrderModel, choice: str = "auto") -> "AnyOrderModel | CompiledModel":
    """The model, its decoding steps recorded if it is on a GPU, unless choice is "off", and compiled if it is "on".

    Samplers use the result instead of the model; its weights must not change from then on. Raises InputError for
    another choice.
    """
    if choice not in CHOICES:
        raise InputError(f"compile must be one of {', '.join(CHOICES)}, not {choice!r}")
    is_faster = choice == "on" or (choice == "auto" and model.device.type == "cuda")
    return CompiledModel(model, compiles=choice == "on") if is_faster else model


def compiler_options(device: torch.device) -> dict[str, Any]:
    """What `torch.compile` needs there. On GPUs Inductor's analysis of tiles fails on symbolic shapes
    (pytorch/pytorch#181563)."""
    return {"triton.coalesce_tiling_analysis": False} if device.type == "cuda" else {}


def rounded(length: int) -> int:
    """The smallest multiple of SLOTS that is at least `length`."""
    return -(-length // SLOTS) * SLOTS


class Recording:
    """A CUDA graph of what a function without arguments does, and its result, which the next replay overwrites."""

    def __init__(self, function: Callable[[], torch.Tensor], pool: Any):
        """Recording runs nothing. pool: of memory, which recordings share that never run at the same time."""
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.result = function()

    def replay(self) -> torch.Tensor:
        """Run it."""
        self.graph.replay()
        return self.result


class CompiledModel:
    """What samplers use instead of a model (see `compiled_for_decoding`). One batch is decoded at a time."""

    def __init__(self, model: AnyOrderModel, compiles: bool = True):
        self.model = model
        self.compiles, self.records = compiles, model.device.type == "cuda"  # false from the first failure on
        self.steps: dict[Step, Step] = {}
        self.forget_recordings()
        self.pool: dict[Any, torch.Tensor] = {}
        self.pooled_length = 0
        self.adopted: dict[str, tuple] = {}  # by the kind of the owner, the addresses of its tensors

    def __getattr__(self, name: str) -> Any:
        """Everything else is the model's."""
        return getattr(self.model, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """As in `AnyOrderModel`."""
        return self.model(*arguments, **keywords)

    def run(self, step: Step, state: Any, *arguments: Any) -> torch.Tensor:
        """What a step returns. The first one of its kind is run, the second recorded, and all from then on replayed."""
        if not self.records:
            return self._call(step, state, *arguments)
        settings = tuple((name, value) for name, value in vars(state).items() if isinstance(value, PLAIN))
        key = (step, arguments, settings, repr(state.config), *self.adopted.values())
        if key not in self.recordings:
            if len(self.recordings) == MOST_RECORDINGS:
                self.forget_recordings()
            self.recordings[key] = None
            return self._call(step, state, *arguments)
        recording = self.recordings[key]
        if recording is None:
            try:
                recording = self.recordings[key] = Recording(partial(self._call, step, state, *arguments), self.memory)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                logger.warning("decoding without CUDA graphs, which failed here: %s", first_line(error))
                self.records = False
                return self._call(step, state, *arguments)
        return recording.replay().clone()

    def forget_recordings(self) -> None:
        """Begin again, with other memory: that of recordings that are gone cannot be given to new ones."""
        self.recordings: dict[tuple, Recording | None] = {}  # None for what has been run once
        self.memory = torch.cuda.graph_pool_handle() if self.model.device.type == "cuda" else None

    def _call(self, step: Step, *arguments: Any) -> torch.Tensor:
        """What a step returns, compiled; after the first failure of the compiler, not compiled."""
        if not self.compiles:
            return step(*arguments)
        if step not in self.steps:
            options = compiler_options(self.model.device)
            # Shapes are symbolic: one compilation serves all lengths.
            self.steps[step] = torch.compile(step, dynamic=True, fullgraph=True, options=options)
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_COMPILATIONS):
                return self.steps[step](*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise exceptions of all kinds
            logger.warning("decoding without torch.compile, which failed here: %s", first_line(error))
            self.compiles = False
            return step(*arguments)

    def start_batch(self, length: int) -> None:
        """Tensors of other lengths are done with, and so are recordings that know their addresses."""
        if length != self.pooled_length:
            self.pool.clear()
            self.forget_recordings()
        self.pooled_length = length
        self.adopted.clear()

    def adopt(self, owner: Any) -> None:
        """Move all tensors of an object to the pool: always the same addresses for the same attribute and shape.

        A step may read no other tensors of it, and of its other attributes only those that are set once and for all.
        """
        kind = type(owner).__name__
        addresses: list[int] = []
        for name, value in vars(owner).items():
            if isinstance(value, torch.Tensor):
                setattr(owner, name, self._pooled((kind, name), value))
                addresses.append(getattr(owner, name).data_ptr())
            elif isinstance(value, list) and value and all(isinstance(part, torch.Tensor) for part in value):
                pooled = [self._pooled((kind, name, index), part) for index, part in enumerate(value)]
                setattr(owner, name, pooled)
                addresses += [part.data_ptr() for part in pooled]
        self.adopted[kind] = (kind, *addresses)

    def _pooled(self, name: tuple, value: torch.Tensor) -> torch.Tensor:
        key = (*name, value.shape, value.dtype)
        if key not in self.pool:
            self.pool[key] = torch.empty_like(value, memory_format=torch.contiguous_format)
        return self.pool[key] if self.pool[key] is value else self.pool[key].copy_(value)


DecodingModel = AnyOrderModel | CompiledModel  # what samplers and scores take
