"""Networks from ONNX files.

Owns the walk over a graph: constants, views, unknown operators, weights. Shapes come from
`onnx_shapes`, the meaning of operators from `onnx_ops`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, SpecError, unknown_name
from .graph import GraphNetwork
from .graph_emit import add_unknown
from .graph_record import Tensor, Trace
from .graph_steps import BATCHES, Origin, network_of
from .onnx_ops import HANDLERS, VIEWS
from .onnx_shapes import Shapes, attributes, input_shapes, is_open

__all__ = ["Walk", "from_onnx"]

# element types of ONNX (TensorProto.DataType) that hold weights, and our formats
_FORMATS = {1: "fp32", 2: "int8", 3: "int8", 10: "fp16", 11: "fp64", 16: "bf16", 17: "fp8_e4m3",
            18: "fp8_e4m3", 19: "fp8_e5m2", 20: "fp8_e5m2", 21: "int4", 22: "int4"}  # fmt: skip
_FLOATS = (1, 10, 11, 16)


def from_onnx(
    path: str | Path, shapes: Mapping[str, Sequence[int | None]] | None = None
) -> GraphNetwork:
    """Read a network from an ONNX file; weights in further files are not read.

    `shapes` gives the shape of an input (or of any tensor that inference leaves open) by name;
    None as the first dimension leaves it to the batch, as does an open first dimension of the
    file. Raises MissingExtraError without the onnx package, SpecError for a file that is no ONNX
    graph and for a shape that is missing (the message names the tensor).
    """
    model = _load(Path(path))
    given = dict(shapes or {})
    _check_names(model.graph, given)
    batches = BATCHES if is_open(model.graph, given) else BATCHES[:1]
    walks = [Walk(model, given, batch) for batch in batches]
    for walk in walks:
        walk.run()
    origin = Origin(
        Path(path).stem, f"ONNX graph {Path(path).name}", _native(model.graph),
        cure="fix the batch: give shapes={input: [...]} with a number for every dimension",
    )  # fmt: skip
    return network_of([walk.trace for walk in walks], origin)


def _load(path: Path) -> Any:
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnx.inliner  # pyright: ignore[reportMissingImports]
        import onnx.shape_inference  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            "reading ONNX graphs needs the onnx package: pip install 'ridgecast[onnx]'"
        ) from error
    if not path.is_file():
        raise SpecError(f"onnx: {path} is not a file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises errors of its own
        raise SpecError(f"onnx: {path} is not an ONNX model: {error}") from error
    if not model.graph.node:
        raise SpecError(f"onnx: {path} holds no graph, or an empty one")
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _check_names(graph: Any, given: Mapping[str, Any]) -> None:
    inputs = [v.name for v in graph.input]
    known = {*inputs, *(name for node in graph.node for name in node.output)}
    for name in given:
        if name not in known:
            raise SpecError(unknown_name("tensor in shapes", name, inputs or sorted(known)))


def _native(graph: Any) -> str:
    """Format that most of the weights come in."""
    sizes: Counter[str] = Counter()
    for t in graph.initializer:
        if t.data_type in _FORMATS:
            sizes[_FORMATS[t.data_type]] += math.prod(t.dims)
    return sizes.most_common(1)[0][0] if sizes else "fp32"


class Walk:
    """One walk over the nodes of a graph at one batch, which fills a trace."""

    def __init__(self, model: Any, given: Mapping[str, Sequence[int | None]], batch: int) -> None:
        self.graph = model.graph
        inputs = input_shapes(model.graph, given, batch)
        self.shapes = Shapes(model, inputs, given)
        self.opset = self.shapes.opsets.get("", 1)
        self.trace = Trace(inputs=list(inputs))
        self._alias: dict[str, str] = {}
        for name, shape in inputs.items():
            self.trace.sizes[name] = float(math.prod(shape))
        for t in self.graph.initializer:
            self.trace.sizes[t.name] = float(math.prod(t.dims))
            self.trace.constants.add(t.name)
        self._note_weights()

    def run(self) -> None:
        """Walk all nodes."""
        for node in self.graph.node:
            self.shapes.infer(node)
            if node.op_type in ("Constant", "ConstantOfShape") or self._fold(node):
                self.trace.constants.update(node.output)
                self._note_constant(node)
                continue
            if node.op_type in VIEWS and self._view(node):
                continue
            self._handle(node)
        self.trace.outputs = [self._root(v.name) for v in self.graph.output]

    def _note_constant(self, node: Any) -> None:
        """Let numbers that stand in a node be a parameter, should an operation use them so."""
        name = node.output[0]
        shape = self.shapes.known_shape(name)
        if node.op_type == "Constant" and shape and self.shapes.element_type(name) in _FLOATS:
            self.trace.sizes[name] = float(math.prod(shape))
            self.trace.candidates.add(name)

    def _note_weights(self) -> None:
        """Note initialisers of floats as parameters; packed ones are, if an operation says so."""
        buffers = self._buffers()
        for t in self.graph.initializer:
            if t.name in buffers or math.prod(t.dims) <= 1 or t.data_type not in _FORMATS:
                continue
            if t.data_type in _FLOATS:
                self.trace.add_weight(t.name)
            else:
                self.trace.candidates.add(t.name)

    def _buffers(self) -> set[str]:
        """Find what no optimiser trains: statistics of batch norms, scales of formats."""
        out: set[str] = set()
        for node in self.graph.node:
            if node.op_type == "BatchNormalization":
                out.update(node.input[3:5])
            if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Resize", "Upsample"):
                out.update(node.input[1:])
            if node.op_type in ("LSTM", "GRU"):
                out.update(node.input[4:])  # lengths and first states
        return out

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by name, views resolved. Raises SpecError where its shape is open."""
        shape = self.shapes.shape(name)
        root = self._root(name)
        self.trace.sizes.setdefault(root, float(math.prod(shape)))
        return Tensor(root, shape)

    def _root(self, name: str) -> str:
        return self._alias.get(name, name)

    def maybe(self, node: Any, index: int) -> Tensor | None:
        """Return an optional input."""
        name = node.input[index] if index < len(node.input) else ""
        return self.tensor(name) if name else None

    def ins(self, node: Any) -> list[Tensor]:
        """Return all inputs that are given and that are tensors of known shape."""
        return [self.tensor(n) for n in node.input if n and self.shapes.known_shape(n) is not None]

    def out(self, node: Any, shape: Sequence[int] | None = None, index: int = 0) -> Tensor:
        """Return an output; `shape` where inference does not know the operator."""
        name = node.output[index]
        if shape is not None and self.shapes.known_shape(name) is None:
            self.shapes.set(name, shape, node.input[0])
        return self.tensor(name)

    def outs(self, node: Any) -> list[Tensor]:
        """Return the outputs that are asked for."""
        return [self.tensor(n) for n in node.output if n]

    def temporary(self, node: Any, shape: Sequence[int]) -> Tensor:
        """Make a tensor that lives inside one operator."""
        name = f"{node.output[0]}/inside"
        self.trace.sizes[name] = float(math.prod(shape))
        return Tensor(name, tuple(shape))

    def _fold(self, node: Any) -> bool:
        """Whether all inputs are constants: so is the output, and it stands for its weight."""
        trace = self.trace
        roots = [trace.storage_of(self._root(n)) for n in node.input if n]
        if not roots or any(root not in trace.constants for root in roots):
            return all(n in self.shapes.values for n in node.output)
        large = max(roots, key=lambda n: trace.sizes.get(n, 0.0))
        if node.op_type not in ("Shape", "Size"):
            trace.storage.update(dict.fromkeys(node.output, large))
        return True

    def _view(self, node: Any) -> bool:
        source = node.input[0]
        self._alias[node.output[0]] = self._root(source)
        if self.shapes.known_shape(node.output[0]) is None and node.op_type in _KEEP_SHAPE:
            self.shapes.set(node.output[0], self.shapes.shape(source), source)
        return True

    def _handle(self, node: Any) -> None:
        domain = node.domain if node.domain not in ("", "ai.onnx") else ""
        handler = HANDLERS.get((domain, node.op_type))
        if handler is None:
            name = f"{domain}.{node.op_type}" if domain else node.op_type
            add_unknown(self.trace, name, self.ins(node), self.outs(node))
        else:
            handler(self, node, attributes(node))


_KEEP_SHAPE = ("Identity", "Dropout")
