"""Networks from torch modules, traced on meta tensors: shapes without numbers.

Owns the trace: which tensors are views of one storage, what is written in place, which calls stand
for themselves (attention, recurrent layers) rather than for what they are made of. The meaning of
operators comes from `torch_ops`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import MissingExtraError, SpecError, UnsupportedError
from .graph import GraphNetwork
from .graph_record import Tensor, Trace
from .graph_steps import BATCHES, Origin, network_of
from .torch_ops import FREE, handle, handle_function

__all__ = ["Recorder", "from_torch"]


def from_torch(
    module: Any, *example_inputs: Any, batch_dim: int | None = None, name: str = "", **kwargs: Any
) -> GraphNetwork:
    """Trace `module(*example_inputs, **kwargs)` and read the network from what it calls.

    Nothing is computed and no parameter is copied: tensors lose their memory, so that modules of
    any size are traced (also ones built under `torch.device("meta")`). With `batch_dim` that
    dimension of every input is left open for the batch; otherwise shapes are fixed. The module is
    traced in the mode it is in: set its evaluation mode first for inference. Raises
    MissingExtraError without torch, UnsupportedError where the module looks at values of tensors.
    """
    torch = _torch()
    if not isinstance(module, torch.nn.Module):
        raise SpecError(f"from_torch: got {type(module).__name__}, need a torch.nn.Module")
    title = name or type(module).__name__
    if batch_dim is None:
        traces = [_traced(module, example_inputs, kwargs)]
    else:
        _check_batch((example_inputs, kwargs), batch_dim)
        traces = []
        for batch in BATCHES:
            args, named = _resized((example_inputs, kwargs), batch_dim, batch)
            traces.append(_traced(module, args, named))
    origin = Origin(
        title, f"torch module {type(module).__module__}.{type(module).__qualname__}",
        _native(module), cure="trace it with batch_dim=None",
    )  # fmt: skip
    return network_of(traces, origin)


def _torch() -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            "tracing torch modules needs torch: pip install 'ridgecast[torch]'"
        ) from error
    return torch


_FORMATS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64",
            "int8": "int8", "uint8": "int8", "float8_e4m3fn": "fp8_e4m3",
            "float8_e5m2": "fp8_e5m2"}  # fmt: skip


def _native(module: Any) -> str:
    """Format that most of the parameters come in."""
    sizes: dict[str, int] = {}
    for p in module.parameters():
        word = str(p.dtype).removeprefix("torch.")
        sizes[word] = sizes.get(word, 0) + p.numel()
    most = max(sizes, key=lambda w: sizes[w]) if sizes else "float32"
    return _FORMATS.get(most, "fp32")


def _tensors(values: Any) -> list[Any]:
    torch = _torch()
    from torch.utils._pytree import tree_leaves  # pyright: ignore[reportMissingImports]

    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


def _check_batch(values: Any, dim: int) -> None:
    sizes = {tuple(t.shape)[dim] if -t.ndim <= dim < t.ndim else None for t in _tensors(values)}
    if len(sizes) != 1 or None in sizes:
        found = ", ".join(str(list(t.shape)) for t in _tensors(values))
        raise SpecError(
            f"from_torch: batch_dim={dim} needs tensors that agree in that dimension, got shapes "
            f"{found or 'of none'}; use batch_dim=None for fixed shapes"
        )


def _resized(values: Any, dim: int, batch: int) -> Any:
    torch = _torch()
    from torch.utils._pytree import tree_map  # pyright: ignore[reportMissingImports]

    def one(t: Any) -> Any:
        if not isinstance(t, torch.Tensor):
            return t
        shape = list(t.shape)
        shape[dim] = batch
        return torch.empty(shape, dtype=t.dtype, device="meta")

    return tree_map(one, values)


def _traced(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Trace:
    """Trace one call on tensors without memory.

    They say that they are on a CPU, so that tensors that the module makes itself fit to them.
    """
    torch = _torch()
    from torch._subclasses.fake_tensor import (  # pyright: ignore[reportMissingImports]
        FakeTensorMode,
    )
    from torch.func import functional_call  # pyright: ignore[reportMissingImports]
    from torch.utils._pytree import tree_map  # pyright: ignore[reportMissingImports]

    empty = FakeTensorMode(allow_non_fake_inputs=True)

    def bare(t: Any) -> Any:
        if not isinstance(t, torch.Tensor):
            return t
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="cpu")

    with empty, torch.no_grad():
        params = {k: bare(p) for k, p in module.named_parameters()}
        buffers = {k: bare(b) for k, b in module.named_buffers()}
        args, kwargs = tree_map(bare, (tuple(args), dict(kwargs)))
    recorder = Recorder(params, buffers, _tensors((args, kwargs)))
    dispatch, functions = _modes(recorder)
    try:
        with torch.no_grad(), functions, empty, dispatch:
            result = functional_call(module, {**params, **buffers}, tuple(args), dict(kwargs))
    except (RuntimeError, NotImplementedError) as error:
        if type(error).__module__ != FakeTensorMode.__module__:
            raise
        raise UnsupportedError(
            f"from_torch: {type(module).__name__} looks at values of tensors, which a trace of "
            f"shapes does not have ({type(error).__name__}: {str(error).splitlines()[0]}); trace "
            "the part of it that does not"
        ) from error
    recorder.finish(_tensors(result))
    return recorder.trace


def _modes(recorder: Recorder) -> tuple[Any, Any]:
    """Make the two hooks: one sees operators, the other functions before they fall apart."""
    from torch.overrides import TorchFunctionMode  # pyright: ignore[reportMissingImports]
    from torch.utils._python_dispatch import (  # pyright: ignore[reportMissingImports]
        TorchDispatchMode,
    )

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            recorder.operator(func, (args, kwargs or {}), out)
            return out

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            return recorder.function(func, args, kwargs or {})

    return Dispatch(), Functions()


class Recorder:
    """Names tensors by storage and version, and fills a trace with what is called."""

    def __init__(
        self, params: Mapping[str, Any], buffers: Mapping[str, Any], inputs: Sequence[Any]
    ) -> None:
        self.trace = Trace()
        self._names: dict[int, str] = {}
        self._version: dict[int, int] = {}
        self._held: list[Any] = []  # storages stay alive, so that their ids stay theirs
        self._muted = 0
        for name, t in params.items():
            self._register(t, name)
            self.trace.constants.add(name)
            self.trace.add_weight(name)
        for name, t in buffers.items():
            self._register(t, name)
            self.trace.constants.add(name)
        for i, t in enumerate(inputs):
            if self._register(t, f"input{i}"):
                self.trace.inputs.append(f"input{i}")

    def _register(self, t: Any, name: str = "") -> bool:
        """Name the storage of a tensor; whether it is new."""
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self._names:
            return False
        self._held.append(storage)
        self._names[key] = name or f"t{len(self._names)}"
        self._version[key] = 0
        self.trace.sizes[self._names[key]] = storage.nbytes() / max(t.element_size(), 1)
        return True

    def tensor(self, t: Any) -> Tensor:
        """Return the tensor as it is now."""
        self._register(t)
        key = t.untyped_storage()._cdata
        root, version = self._names[key], self._version[key]
        name = f"{root}#{version}" if version else root
        self.trace.storage[name] = root
        view = f"{t.storage_offset()}:{tuple(t.shape)}:{tuple(t.stride())}"
        return Tensor(name, tuple(int(n) for n in t.shape), view)

    def known(self, t: Any) -> bool:
        """Whether the storage of a tensor was seen before: then it is a view."""
        return t.untyped_storage()._cdata in self._names

    def free(self, t: Any) -> None:
        """Name a tensor that costs nothing to make (a table of positions, a constant)."""
        if self._register(t):
            self.trace.constants.add(self._names[t.untyped_storage()._cdata])

    def written(self, t: Any) -> Tensor:
        """Name what is written: a new tensor, or the next version of one written in place."""
        if not self._register(t):
            self._version[t.untyped_storage()._cdata] += 1
        return self.tensor(t)

    def function(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function; record it whole where it is an operation of ours."""
        name = getattr(func, "__name__", "")
        whole = not self._muted and handle_function(self, name, args, kwargs)
        if whole is None or whole is False:
            return func(*args, **kwargs)
        self._muted += 1
        try:
            out = func(*args, **kwargs)
        finally:
            self._muted -= 1
        whole(out)
        return out

    def operator(self, func: Any, given: tuple[Any, Any], out: Any) -> None:
        """Record an operator that was called with `given` (arguments, named ones)."""
        if self._muted:
            return
        name = func._schema.name.partition("::")[2]
        results = _tensors(out)
        changed = _changed(func, given)
        if name in FREE or (not changed and all(self.known(t) for t in results)):
            for t in results:
                self.free(t)
            return
        handle(self, func, given, results)

    def finish(self, results: Sequence[Any]) -> None:
        """Note the outputs."""
        self.trace.outputs = list(dict.fromkeys(self.tensor(t).name for t in results))


def _changed(func: Any, given: tuple[Any, Any]) -> bool:
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
