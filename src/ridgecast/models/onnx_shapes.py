"""Shapes of every tensor of an ONNX graph, at given shapes of its inputs.

Owns the walk: the onnx package infers each node from its inputs, and small integer tensors (shapes,
axes, indices) are computed on the way, so that reshapes by computed shapes are followed. Must not
know operations of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SpecError

__all__ = ["Shapes", "attributes", "input_shapes", "is_open"]

_SMALL = 4096  # elements of a tensor that is worth computing
_DRAWN = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
          "Multinomial", "If", "Loop", "Scan")  # fmt: skip

Given = Mapping[str, Sequence[int | None]]


def attributes(node: Any) -> dict[str, Any]:
    """Attributes of a node as Python values, words decoded."""
    from onnx import helper  # pyright: ignore[reportMissingImports]

    out = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in out.items()}


def _inputs(graph: Any) -> list[Any]:
    constant = {t.name for t in graph.initializer}
    return [v for v in graph.input if v.name not in constant]


def _dims(value: Any) -> list[int | str]:
    shape = value.type.tensor_type.shape
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?"
            for d in shape.dim]  # fmt: skip


def is_open(graph: Any, given: Given) -> bool:
    """Whether the first dimension of some input is left to the batch."""
    for value in _inputs(graph):
        dims = list(given.get(value.name, _dims(value)))
        if dims and not _whole(dims[0]):
            return True
    return False


def _whole(n: Any) -> bool:
    return isinstance(n, int) and n > 0


def input_shapes(graph: Any, given: Given, batch: int) -> dict[str, list[int]]:
    """Shapes of the inputs, open first dimensions filled with `batch`.

    A name of a dimension that a given shape settles counts wherever it stands.
    Raises SpecError naming the input and what to give.
    """
    known: dict[str, int] = {}
    for value in _inputs(graph):
        declared, got = _dims(value), given.get(value.name)
        if got is None or not value.type.tensor_type.HasField("shape"):
            continue
        if len(got) != len(declared):
            raise SpecError(f"shapes[{value.name!r}]: got {len(got)} dimensions, need "
                            f"{len(declared)}: {_told(declared)}")  # fmt: skip
        for name, n in zip(declared, got, strict=True):
            if isinstance(name, int) and _whole(n) and n != name:
                raise SpecError(f"shapes[{value.name!r}]: got {list(got)}, the graph has "
                                f"{_told(declared)}")  # fmt: skip
            if isinstance(name, str) and name != "?" and n is not None and _whole(n):
                known[name] = n
    return {v.name: _filled(v, given, known, batch) for v in _inputs(graph)}


def _told(dims: Sequence[int | str]) -> str:
    return f"[{', '.join(str(d) for d in dims)}]"


def _filled(value: Any, given: Given, known: Mapping[str, int], batch: int) -> list[int]:
    dims = list(given.get(value.name, _dims(value)))
    out: list[int] = []
    for i, n in enumerate(dims):
        if isinstance(n, int) and n > 0:
            out.append(n)
        elif isinstance(n, str) and n in known:
            out.append(known[n])
        elif i == 0:
            out.append(batch)
        else:
            raise SpecError(
                f"input {value.name}: dimension {i} ({n}) of {_told(_dims(value))} is open; give "
                f"shapes={{{value.name!r}: [...]}} with a number for it (None: the batch, first)"
            )
    return out


class Shapes:
    """Shapes, small values and element types of the tensors of a graph, node by node."""

    def __init__(self, model: Any, inputs: Mapping[str, Sequence[int]], given: Given) -> None:
        from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

        self._helper = helper
        self.model, self.graph, self.given = model, model.graph, given
        self.opsets = {o.domain or "": o.version for o in model.opset_import}
        self.types: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self._declared = {v.name: v for v in (*self.graph.value_info, *self.graph.output)}
        for t in self.graph.initializer:
            self.types[t.name] = helper.make_tensor_type_proto(t.data_type, list(t.dims))
            if math.prod(t.dims) <= _SMALL and not t.external_data:
                self.values[t.name] = numpy_helper.to_array(t)
        for v in _inputs(self.graph):
            kind = v.type.tensor_type.elem_type
            self.types[v.name] = helper.make_tensor_type_proto(kind, list(inputs[v.name]))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises SpecError naming it and what to give."""
        found = self.known_shape(name)
        if found is None:
            raise SpecError(
                f"tensor {name}: its shape does not follow from the inputs; give "
                f"shapes={{{name!r}: [...]}}"
            )
        return found

    def known_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, or None."""
        if name in self.given and all(_whole(n) for n in self.given[name]):
            return tuple(int(n) for n in self.given[name] if n is not None)
        kind = self.types.get(name)
        if kind is None or not kind.tensor_type.HasField("shape"):
            return None
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.tensor_type.shape.dim]
        return None if any(n < 0 for n in dims) else tuple(dims)

    def element_type(self, name: str) -> int:
        """Return the number of the element type in ONNX; 1 (float) where unknown."""
        kind = self.types.get(name)
        return kind.tensor_type.elem_type if kind is not None else 1

    def set(self, name: str, shape: Sequence[int], like: str = "") -> None:
        """State the shape of a tensor."""
        kind = self.element_type(like) if like else 1
        self.types[name] = self._helper.make_tensor_type_proto(kind, list(shape))

    def infer(self, node: Any) -> None:
        """Infer the outputs of a node, and compute them where they are small."""
        if self._compute(node):
            return
        try:
            found = self._inferred(node)
        except Exception:  # the package raises its own errors; a missing shape is told later
            found = {}
        for name in node.output:
            if name in found:
                self.types[name] = found[name]
            if self.known_shape(name) is None and name in self._declared:
                self.types[name] = self._declared[name].type

    def _inferred(self, node: Any) -> dict[str, Any]:
        import onnx  # pyright: ignore[reportMissingImports]

        domain = "" if node.domain == "ai.onnx" else node.domain
        schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), domain)
        names = [n for n in node.input if n]
        types = {n: self.types[n] for n in names if n in self.types}
        data = {n: onnx.numpy_helper.from_array(self.values[n], n)
                for n in names if n in self.values}  # fmt: skip
        return onnx.shape_inference.infer_node_outputs(
            schema, node, types, data,
            opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version,
        )  # fmt: skip

    def _compute(self, node: Any) -> bool:
        """Compute small outputs of known inputs; returns whether that was done."""
        import numpy as np

        if node.op_type in ("Shape", "Size"):
            shape = self.known_shape(node.input[0])
            if shape is None:
                return False
            at = attributes(node)
            part = shape[slice(at.get("start", 0), at.get("end"))]
            value = np.array(part if node.op_type == "Shape" else math.prod(shape), np.int64)
            return self._store(node.output[0], value)
        names = [n for n in node.input if n]
        if node.op_type in _DRAWN or any(n not in self.values for n in names):
            return False
        if node.op_type == "Expand" and math.prod(self.values[node.input[1]].tolist()) > _SMALL:
            return False
        try:
            results = self._run(node, names)
        except Exception:  # not every operator has a reference; its shape is then inferred
            return False
        for name, value in zip(node.output, results, strict=False):
            if name:
                self._store(name, np.asarray(value))
        return True

    def _run(self, node: Any, names: Sequence[str]) -> list[Any]:
        from onnx import helper  # pyright: ignore[reportMissingImports]
        from onnx.reference import ReferenceEvaluator  # pyright: ignore[reportMissingImports]

        ins = [helper.make_value_info(n, self.types[n]) for n in dict.fromkeys(names)]
        outs = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
        graph = helper.make_graph([node], "one", ins, outs)
        model = helper.make_model(graph, opset_imports=self.model.opset_import)
        return ReferenceEvaluator(model).run(None, {n: self.values[n] for n in names})

    def _store(self, name: str, value: Any) -> bool:
        kind = self._helper.np_dtype_to_tensor_dtype(value.dtype)
        self.types[name] = self._helper.make_tensor_type_proto(kind, list(value.shape))
        if value.size <= _SMALL:
            self.values[name] = value
        return True
