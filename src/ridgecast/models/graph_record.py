"""What an importer records of a graph: tensors, steps, weights.

Owns the values `Tensor`, `Step`, `Weight` and the collecting `Trace`. Must not know where a graph
comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Step", "Tensor", "Trace", "Weight", "part_of"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor at one moment: its name, its shape, and which part of a storage it views.

    Views of one tensor share its name and differ by `view`.
    """

    name: str
    shape: tuple[int, ...]
    view: str = ""

    @property
    def elements(self) -> float:
        """Elements of the view."""
        return float(math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a graph: what it is, what it reads and writes.

    `chain` marks element-wise steps that may be fused with their neighbours; their fields are
    elements, ops, special and lanes (adds and multiplies an element), and `final_fields` makes
    those of the operation from them. `scratch` are elements that live inside it only. `shape` is
    that of its result.
    """

    op: str
    fields: Mapping[str, Any]
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    part: str
    role: str = "other"
    chain: bool = False
    scratch: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return self.writes[0].shape if self.writes else ()

    def final_fields(self) -> dict[str, Any]:
        """Fields of the operation in `ops`."""
        if not self.chain:
            return dict(self.fields)
        f = self.fields
        large = {(t.name, t.view) for t in self.reads if t.elements >= f["elements"]}
        inputs = min(max(len(large), 1), f["ops"] + 1)
        plain_ops = f["ops"] - f["special"]
        vector = f["lanes"] / plain_ops if plain_ops else 1.0
        return {"elements": f["elements"], "ops": f["ops"], "special": f["special"],
                "inputs": inputs, "vector": vector}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter tensor and what it is for."""

    elements: float
    part: str
    role: str = "other"
    per_token: float = 1.0


@dataclass(slots=True)
class Trace:
    """What is collected while a graph is walked.

    `sizes` are elements of each storage, `storage` says in which storage a tensor lies (in its
    own, unless stated), `constants` are storages that are no activations: weights, buffers.
    `weights` are the parameters; `candidates` become some once an operation uses them as such.
    """

    steps: list[Step] = field(default_factory=list[Step])
    sizes: dict[str, float] = field(default_factory=dict[str, float])
    storage: dict[str, str] = field(default_factory=dict[str, str])
    constants: set[str] = field(default_factory=set[str])
    candidates: set[str] = field(default_factory=set[str])
    weights: dict[str, Weight] = field(default_factory=dict[str, Weight])
    inputs: list[str] = field(default_factory=list[str])
    outputs: list[str] = field(default_factory=list[str])
    unknown: list[str] = field(default_factory=list[str])

    def storage_of(self, name: str) -> str:
        """Name of the storage that a tensor lies in."""
        return self.storage.get(name, name)

    def input_roots(self) -> list[str]:
        """Storages of the inputs."""
        return [self.storage_of(name) for name in self.inputs]

    def output_roots(self) -> list[str]:
        """Storages of the outputs."""
        return [self.storage_of(name) for name in self.outputs]

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is a weight or a buffer."""
        return self.storage_of(tensor.name) in self.constants

    def add_weight(self, name: str) -> None:
        """Note a parameter whose use is not known yet."""
        self.weights[name] = Weight(self.sizes[name], part_of(name, "other"))

    def use(self, tensor: Tensor | None, role: str, per_token: float = 1.0) -> str:
        """Note what a weight is for, and return the part of the network that it names ("")."""
        if tensor is None:
            return ""
        root = self.storage_of(tensor.name)
        if root in self.candidates and role != "other":
            self.candidates.discard(root)
            self.add_weight(root)
        known = self.weights.get(root)
        if known is None:
            return ""
        if known.role == "other":  # the first use that says more decides; tied weights count once
            known = Weight(known.elements, part_of(root, role), role, per_token)
        elif per_token > known.per_token and role != "other":  # a table that is the head as well
            known = replace(known, per_token=per_token)
        self.weights[root] = known
        return part_of(root, role)


def part_of(name: str, role: str) -> str:
    """Name a part of a network from a parameter's path: its last word that is no number.

    >>> part_of("model.layers.11.self_attn.q_proj.weight", "linear")
    'q_proj'
    >>> part_of("onnx::MatMul_214", "linear"), part_of("layers.0.weight", "conv")
    ('linear', 'conv')
    """
    if "::" in name:
        return role
    words = [w for w in name.replace("/", ".").split(".") if w]
    plain = [w for w in words if not w.isdigit() and w not in _ENDINGS]
    return plain[-1] if plain and len(words) > 1 else role


_ENDINGS = ("weight", "bias", "layers", "blocks", "layer", "block", "module")
