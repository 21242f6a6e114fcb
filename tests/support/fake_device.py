"""A CUDA device that is not there: code for GPUs runs on a CPU under the rules of a GPU, and its costs are counted.

    with FakeDevice() as gpu:
        model = tiny_gpt2(20).to("cuda")
        sample(model, ...)                       # raises what CUDA would raise when devices are mixed
    print(gpu.launches, gpu.waits)               # kernels and host-device synchronisations, by scope

A fake tensor is a wrapper around a CPU tensor: a CPU tensor to C++, `cuda:0` to Python. Checked: all tensors of an
operation (but CPU tensors without dimensions) are on one device; CPU tensors may index CUDA tensors, not the other way
round; no `numpy()`. Counted: kernels (views launch none), weighted by WEIGHTS, and what makes the host wait: reading
values, `nonzero`, boolean indexing, and copies between devices. Not shown: numerics, memory, CUDA graphs, compilation.
A clean run is evidence as far as mutants of the code, with a device dropped, are caught.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import torch
import torch._dynamo  # before anything is patched: it looks its functions up by identity
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# Kernels an operation launches on a GPU, if not 1. Views and allocations launch none.
FREE = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh", "_unsafe_view", "resize_",
    "set_", "_local_scalar_dense", "is_same_size", "record_stream", "detach", "alias", "view", "expand",
}  # fmt: skip
WEIGHTS = {
    "scatter": 2, "scatter_add": 2, "masked_fill": 2, "constant_pad_nd": 2, "index_put": 2, "sort": 4, "topk": 4,
    "argsort": 5, "nonzero": 4, "cummax": 2, "cumprod": 2,
}  # fmt: skip
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}
ATOMIC = {"scaled_dot_product_attention", "linear", "log_softmax", "softmax", "layer_norm", "embedding", "gather"}
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"


class FakeTensor(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, data: torch.Tensor, requires_grad: bool = False):
        data = data.detach()
        self = torch.Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype,
            layout=data.layout, device=CPU, requires_grad=requires_grad,
        )  # fmt: skip
        self.inner = data
        return self

    device, is_cuda, is_cpu = (property(lambda self, value=value: value) for value in (CUDA, True, False))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _inner(x):
    return x.inner if isinstance(x, FakeTensor) else x


def _is_cuda(device) -> bool:
    return device is not None and not isinstance(device, bool) and torch.device(device).type == "cuda"


def _wrap(x):
    return FakeTensor(x) if isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor) else x


def _run(func, args, kwargs):
    """One operation with at least one fake tensor among its arguments."""
    name = func.overloadpacket.__name__
    if name not in ATOMIC and func._can_decompose():
        result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    first_is_fake = bool(args) and isinstance(args[0], FakeTensor)
    crosses = _is_cuda(kwargs["device"]) != first_is_fake if kwargs.get("device") is not None else False
    if "device" in kwargs:
        kwargs = kwargs | {"device": CPU if kwargs["device"] is not None else None}
    on_cuda = first_is_fake != crosses if args and isinstance(args[0], torch.Tensor) else True
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    if name == "copy_":
        if isinstance(args[0], FakeTensor) != isinstance(args[1], FakeTensor):
            _note_wait()
    elif name == "_to_copy" and crosses:
        _note_wait()
    elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        _check_index(name, args)
    elif any(not isinstance(x, FakeTensor) and x.dim() > 0 for x in tensors):
        raise RuntimeError(f"{MIXED} (when checking {func})")
    if name in WAITS:
        _note_wait()
    _note_launch(name, func)
    plain_args, plain_kwargs = tree_map(_inner, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable and first_is_fake and result is plain_args[0]:
        return args[0]
    return tree_map(_wrap, result) if on_cuda else result


def _check_index(name, args):
    own, indices = args[0], [x for x in args[1] if x is not None]
    if not isinstance(own, FakeTensor) and any(isinstance(x, FakeTensor) for x in indices):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if name != "index" and isinstance(args[2], FakeTensor) != isinstance(own, FakeTensor) and args[2].dim() > 0:
        raise RuntimeError(f"{MIXED} (when checking argument values of {name})")
    for x in indices:
        if x.dtype == torch.bool or (isinstance(own, FakeTensor) and not isinstance(x, FakeTensor)):
            _note_wait()


_active: list["FakeDevice"] = []


def _note_launch(name, func=None):
    is_view = func is not None and any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
    if _active and not (is_view or name.rstrip("_") in FREE or name in FREE):
        _active[-1].launches[_active[-1].scope] += WEIGHTS.get(name.rstrip("_"), 1)


def _note_wait():
    if _active:
        _active[-1].waits[_active[-1].scope] += 1


class FakeDevice(TorchFunctionMode):
    """The mode. launches, waits: by scope, "rest" outside of `within`."""

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.scope, self.launches, self.waits = "rest", Counter(), Counter()

    @contextlib.contextmanager
    def within(self, scope: str) -> Iterator[None]:
        """Count under another name."""
        before, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = before

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, FakeTensor):
            if name in ("numpy", "__array__"):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if name == "tolist":
                _note_wait()
            if name in ("tolist", "data_ptr", "untyped_storage", "storage", "__reduce_ex__"):
                return getattr(first.inner, name)(*args[1:], **kwargs)
        if name in ("to", "cpu", "cuda") and isinstance(first, torch.Tensor):
            return _moved(first, name, args[1:], kwargs)
        if not _is_cuda(kwargs.get("device")):
            return func(*args, **kwargs)
        if any(isinstance(x, FakeTensor) for x in args):  # zeros_like(x, device=cuda)
            return func(*args, **{key: value for key, value in kwargs.items() if key != "device"})
        if name in ("tensor", "as_tensor"):
            _note_wait()
        _note_launch(name)
        with torch._C.DisableTorchFunction():
            result = func(*map(_inner, args), **(kwargs | {"device": CPU}))
        return FakeTensor(result, kwargs.get("requires_grad", False))

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        for target, value in _patches():
            self._stack.enter_context(mock.patch(target, value, create=True))
        _active.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        _active.pop()
        super().__exit__(*error)
        self._stack.close()


def _moved(x, name, args, kwargs):
    """x.to(...), x.cpu(), x.cuda(...)."""
    if name == "to":
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(
            *args, **{key: value for key, value in kwargs.items() if key != "copy"}
        )
    else:
        device, dtype, non_blocking = (CPU if name == "cpu" else CUDA), None, False
    if device is None or _is_cuda(device) == isinstance(x, FakeTensor):
        if dtype is None and not kwargs.get("copy"):
            return x
        with torch._C.DisableTorchFunction():
            return torch.Tensor.to(x, dtype or x.dtype, copy=kwargs.get("copy", False))
    if not non_blocking:
        _note_wait()
    _note_launch("copy")
    moved = _inner(x).detach().to(dtype or x.dtype, copy=True)
    return FakeTensor(moved, x.requires_grad) if _is_cuda(device) else moved


def _patches() -> list[tuple[str, object]]:
    """What torch says of its GPU: (name, value)."""

    def enter(mode):  # wrappers of ordinary tensors have no views in inference mode
        mode.instead = torch.set_grad_enabled(False if mode.mode else torch.is_grad_enabled())

    def leave(mode, *error):  # returns None: anything true would swallow the error
        torch.set_grad_enabled(mode.instead.prev)

    def translated(function):
        return lambda device="cpu", *rest: function("cpu" if device == "cuda" else device, *rest)

    nothing = ("_lazy_init", "synchronize", "empty_cache", "set_device")
    fixed = {"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0}
    fixed |= dict.fromkeys(nothing)
    return [
        *((f"torch.cuda.{name}", lambda *a, value=value, **k: value) for name, value in fixed.items()),
        ("torch.accelerator.current_stream", lambda *a: SimpleNamespace(is_capturing=lambda: False)),
        ("torch.is_autocast_enabled", translated(torch.is_autocast_enabled)),
        ("torch.get_autocast_dtype", translated(torch.get_autocast_dtype)),
        ("torch.inference_mode.__enter__", enter),
        ("torch.inference_mode.__exit__", leave),
        # Modules swap their tensors for fake ones, so that tied weights stay tied.
        ("torch.__future__.get_swap_module_params_on_conversion", lambda: True),
    ]
