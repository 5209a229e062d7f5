"""Memory of one device in training: weights, gradients, optimiser states, activations.

Mixed precision with Adam keeps 16 bytes a trained parameter: 2 of weights, 2 of gradients, 4 of a
master copy and 8 of two moments (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1); ZeRO cuts
them over data-parallel devices. Activations are counted operation by operation and agree with
s b h (34 + 5 a s / h) of a GPT layer (Korthikanti et al. 2022, arXiv:2205.05198, equation 1).

Knows no time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import SpecError
from ..models.network import Call, Layout, Network, Tokens
from ..predict.observe import told
from ..scenario.engine import engine
from ..techniques.treatment import Storage, Treatment

__all__ = ["Activations", "Plan", "TrainingMemory", "activations_of", "adapter_parameters",
           "trained_parameters", "training_memory"]  # fmt: skip

RECOMPUTE = ("none", "selective", "full")
_WIDE = 2.0  # bytes of 16-bit numbers
_SCORES = 2.0  # bytes a score: the softmax's output; with dropout its mask and result too, 3 more
_RESIDENT_LAYERS = 2.0  # streamed weights: the layer at work and the one that comes next


@dataclass(frozen=True, slots=True)
class Plan:
    """One training step of a replica: `batch` sequences of `length` tokens on a device at once.

    `data` devices hold different sequences, each replica spread by `layout` (tp, pp); `zero` is the
    stage of ZeRO over them (1: states, 2: gradients too, 3: weights too). `accumulate` micro-
    batches a step. `recompute`: "selective" recomputes attention scores, "full" all but the layers'
    inputs. `flash`: scores are never stored. `dropout`: masks and results of dropout are kept.
    `offload` names what lives on the host: "states", "gradients", "weights", "activations".
    `sequence_parallel`: what tp does not cut (norms, masks) is cut by tokens. `logits` is the share
    of positions that are trained on at once (chunked losses: below 1).
    """

    batch: float = 1.0
    length: int = 2048
    data: int = 1
    layout: Layout = field(default_factory=Layout)
    zero: int = 0
    accumulate: int = 1
    recompute: str = "none"
    flash: bool = True
    dropout: bool = False
    offload: frozenset[str] = frozenset()
    sequence_parallel: bool = False
    logits: float = 1.0

    def __post_init__(self) -> None:
        if self.recompute not in RECOMPUTE:
            raise SpecError(f"plan.recompute: got {self.recompute!r}, need one of {RECOMPUTE}")
        if self.zero not in (0, 1, 2, 3):
            raise SpecError(f"plan.zero: got {self.zero!r}, need 0, 1, 2 or 3")
        if self.batch <= 0 or self.length < 1 or self.data < 1 or self.accumulate < 1:
            raise SpecError(
                f"plan: got batch {self.batch}, length {self.length}, data {self.data}, accumulate "
                f"{self.accumulate}; need a batch above 0, the others from 1"
            )
        strange = self.offload - {"states", "gradients", "weights", "activations"}
        if strange:
            raise SpecError(
                f"plan.offload: got {sorted(strange)}, need some of states, gradients, weights, "
                "activations"
            )


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes kept for the backward pass, all layers of one device, by what keeps them.

    `linear`: inputs of products with weights. `attention`: queries, keys and values. `scores`: what
    of the score matrix is stored. `pointwise`: inputs of activation functions. `norms`: inputs of
    normalisations. `masks`: dropout on the residual stream. `inputs`: of each layer. `logits`: of
    the head, in fp32.
    """

    linear: float
    attention: float
    scores: float
    pointwise: float
    norms: float
    masks: float
    inputs: float
    logits: float

    @property
    def layers(self) -> float:
        """Bytes of all layers, the head left out."""
        parts = (self.linear, self.attention, self.scores, self.pointwise, self.norms, self.masks)
        return sum(parts)


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on one device by component; `host` are those that live in host memory instead."""

    weights: float
    gradients: float
    states: float
    activations: float
    context: float
    fragmentation: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return (self.weights + self.gradients + self.states + self.activations + self.context
                + self.fragmentation)  # fmt: skip


def _calls(network: Network, plan: Plan) -> list[Call]:
    length = float(plan.length)
    group = Tokens(plan.batch, length, length, np.ceil(length * plan.logits))
    return network.calls([group], plan.layout)


def _number(call: Call, name: str, default: float = 1.0) -> float:
    return float(np.asarray(call.fields.get(name, default), np.float64).max())


def activations_of(network: Network, plan: Plan) -> Activations:
    """Count what a forward pass leaves for the backward pass, in 16 bits, nothing recomputed.

    Of pipeline stages, the first holds as many micro-batches as there are stages, each of its share
    of the layers: together one micro-batch of all layers.
    """
    kept: dict[str, float] = dict.fromkeys(Activations.__slots__, 0.0)
    shared = plan.layout.tp if plan.sequence_parallel else 1
    tokens = plan.batch * plan.length
    for call in _calls(network, plan):
        count = float(np.asarray(call.count).max())
        for name, size in _kept_of(call, plan).items():
            cut = shared if name == "norms" else 1
            kept[name] += count * size / cut
    width = float(getattr(network, "hidden", 0) or _width(network, plan))
    layers = float(getattr(network, "layers", 0) or _layers(network, plan))
    kept["inputs"] = _WIDE * tokens * width * layers / shared
    if plan.dropout:
        kept["masks"] = 2.0 * tokens * width * layers / shared
    return Activations(**kept)


def _kept_of(call: Call, plan: Plan) -> dict[str, float]:
    """Bytes that one call keeps, by kind."""

    def n(name: str, default: float = 1.0) -> float:
        return _number(call, name, default)

    found: dict[str, float] = {}
    if call.op == "gemm" and call.role == "head":
        found["logits"] = 2.0 * _WIDE * n("m") * n("n")
    elif call.op == "gemm":
        found["linear"] = _WIDE * n("m") * n("k") * n("batch")
        if call.part in ("qkv", "ffn_up") and plan.sequence_parallel:
            found["linear"] /= plan.layout.tp  # inputs of column-cut products are kept in shards
    elif call.op == "attention":
        keys = n("kv_len") * n("kv_heads") * (n("head_dim") + n("v_head_dim", n("head_dim")))
        wide = n("batch") * (n("q_len") * n("q_heads") * n("head_dim") + keys)
        scores = n("batch") * n("q_heads") * n("q_len") * n("kv_len")
        each = _SCORES + (3.0 if plan.dropout else 0.0)
        stored = not plan.flash and plan.recompute != "selective"
        found |= {"attention": _WIDE * wide, "scores": each * scores if stored else 0.0}
    elif call.op == "pointwise" and call.part == "activation":
        found["pointwise"] = _WIDE * n("elements") * n("inputs")
    elif call.op == "normalisation":
        found["norms"] = _WIDE * n("rows") * n("cols")
    elif call.op == "moe":
        rows, inter = n("num_tokens") * n("top_k") / n("ep"), n("inter") / n("tp")
        found["linear"] = _WIDE * rows * (n("hidden") + inter)
        found["pointwise"] = _WIDE * rows * inter * (2.0 if n("gated") else 1.0)
    return found


def _width(network: Network, plan: Plan) -> float:
    """Columns of the residual stream: those of the norms that take most rows."""
    norms = [c for c in _calls(network, plan) if c.op == "normalisation"]
    return max((_number(c, "cols") for c in norms), default=0.0)


def _layers(network: Network, plan: Plan) -> float:
    calls = _calls(network, plan)
    return sum(float(np.asarray(c.count).max()) for c in calls if c.op == "attention")


def adapter_parameters(network: Network, rank: int) -> float:
    """Parameters of low-rank adapters on all linear layers: rank (rows + columns) each matrix.

    Fused products are as many matrices as they were: queries, keys and values; gate and up.
    """
    if not rank:
        return 0.0
    total = 0.0
    calls = network.calls([Tokens(1.0, 8.0, 8.0, 0.0)], Layout())
    gated = {c.part for c in calls if c.op == "pointwise" and _number(c, "inputs") == 2.0}
    for c in calls:
        if c.op == "gemm" and c.role == "linear":
            pieces = 3.0 if c.part == "qkv" else 1.0
            if c.part == "ffn_up" and "activation" in gated:
                pieces = 2.0
            count = float(np.asarray(c.count).max())
            total += count * rank * (pieces * _number(c, "k") + _number(c, "n"))
    return total


def trained_parameters(network: Network, t: Treatment) -> float:
    """Parameters that gradients are made for: those trained in place, and adapters'."""
    return network.parameters * t.trainable + adapter_parameters(network, t.tuning.rank)


def _weight_bytes(network: Network, t: Treatment) -> float:
    """Bytes of the network's weights in training: 16 bits, or what the treatment stores."""
    wide = Storage.of("bf16")
    total = 0.0
    for w in network.weights():
        stored = wide
        if w.role in ("linear", "conv"):
            stored = t.weights or wide
        elif w.role == "expert":
            stored = t.experts or t.weights or wide
        elif w.role in ("head", "embedding"):
            stored = t.ends or wide
        total += w.total * stored.bytes_each * (t.tuning.pruned if w.role == "linear" else 1.0)
    return total


def _kept_bytes(network: Network, plan: Plan, t: Treatment) -> tuple[float, float]:
    """Bytes of activations on the device, and those that may live on the host."""
    a, u = activations_of(network, plan), t.tuning
    layers = max(float(getattr(network, "layers", 0) or _layers(network, plan)), 1.0)
    if not u.backward:  # two layers' worth of what a forward pass works on
        return 2.0 * (a.inputs + a.pointwise + a.linear) / layers + a.logits, 0.0
    narrow = u.kept_bits / 16.0
    narrowed = a.attention + a.scores + a.pointwise + a.norms
    each = (a.linear * u.inputs + narrowed * narrow + a.masks) * u.reach  # fmt: skip
    if plan.recompute != "full":
        away = "activations" in plan.offload
        held = each * min(2.0 / layers, 1.0) if away else each
        return held + a.logits, each - held
    inputs = a.inputs * u.reach
    work = each / layers  # of the layer that is recomputed
    if "activations" in plan.offload:
        return inputs * min(2.0 / layers, 1.0) + work + a.logits, inputs
    return inputs + work + a.logits, 0.0


def training_memory(network: Network, plan: Plan, t: Treatment | None = None) -> TrainingMemory:
    """Bytes of one device in a training step.

    Of a treatment, it reads how frozen weights are stored (`weights`, `experts`, `ends`), the share
    that is trained in place (`trainable`) and `tuning`. Raises InfeasibleError for a layout that
    does not divide the network.
    """
    t = t or Treatment()
    told("train", network, None, plan, t)
    u, cut = t.tuning, plan.layout.tp * plan.layout.pp
    own = network.parameters * t.trainable * u.layers / cut
    added = adapter_parameters(network, u.rank) / cut
    frozen = _weight_bytes(network, t) / cut
    weights = frozen + _WIDE * added
    trained = own + added
    gradients = u.gradient_bytes * trained if u.backward else 0.0
    states = (u.master_bytes + u.state_bytes) * trained if u.backward else 0.0
    parts: dict[str, Any] = {"states": states, "gradients": gradients, "weights": weights}
    for stage, name in ((1, "states"), (2, "gradients"), (3, "weights")):
        if plan.zero >= stage:
            parts[name] /= plan.data
    layers = max(float(getattr(network, "layers", 0) or _layers(network, plan)), 1.0)
    one = weights * plan.layout.pp / layers
    if plan.zero == 3 and plan.data > 1 and "weights" not in plan.offload:
        parts["weights"] += one * _RESIDENT_LAYERS  # gathered whole to be used
    host = 0.0
    for name in ("states", "gradients", "weights"):
        if name in plan.offload:
            host += parts[name]
            near = one if name == "weights" else gradients / layers  # of a layer, on its way
            parts[name] = 0.0 if name == "states" else min(_RESIDENT_LAYERS * near, parts[name])
    if "weights" in plan.offload:  # embedding and head are used at both ends of the pass
        ends = sum(w.total for w in network.weights() if w.role in ("embedding", "head"))
        parts["weights"] += ends * (t.ends.bytes_each if t.ends else _WIDE) / cut
    kept, away = _kept_bytes(network, plan, t)
    base = engine("hf")
    loose = base.fragmentation * (kept + parts["gradients"])
    return TrainingMemory(parts["weights"], parts["gradients"], parts["states"], kept,
                          base.context, loose, host + away)  # fmt: skip
