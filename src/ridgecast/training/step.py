"""Time of one training step, from its forward pass.

The backward pass of a product is two more of the same size: one for the inputs, one for the
weights (left out where they are frozen). That of fused attention is five products for two (Dao
2023, arXiv:2307.08691, section 3.1.2); a forward pass that is run again costs itself. Transfers and
host work run beside compute as far as the plan lets them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..hardware import Hardware, resolve
from ..kernels.operator import analytic_time
from ..models.network import Layout, Network, Tokens
from ..ops.base import Work
from ..ops.collective import Collective
from ..predict.observe import told
from ..scenario.engine import engine
from ..scenario.formats import formats_of
from ..scenario.host import Host, fetch_bandwidth
from ..scenario.lower import Timed
from ..scenario.passes import Machine, Pass, run_pass
from ..techniques.treatment import Treatment
from .memory import Plan, activations_of, trained_parameters

__all__ = ["Step", "step_time"]

_ADAM = 28.0  # bytes an fp32 parameter: 16 read, 12 written (ops.optimiser)
_ATTENTION_BACKWARD = 2.5  # products of fused attention's backward pass over its forward pass's


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step by what takes them, and what it achieves.

    `compute` forward, backward and recomputation on one device; `exchange` of gradients and
    weights between replicas; `bubble` of pipeline stages; `optimiser`; `waiting` for transfers to
    and from the host that compute does not hide. `flops` are those of the model on all devices:
    forward and backward, nothing that is recomputed; `executed` counts that too. `tokens` of all
    devices.
    """

    compute: float
    exchange: float
    bubble: float
    optimiser: float
    waiting: float
    flops: float
    executed: float
    tokens: float
    devices: int
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """Seconds of the step."""
        return self.compute + self.exchange + self.bubble + self.optimiser + self.waiting

    @property
    def flops_per_s(self) -> float:
        """Model operations/s of one device."""
        return self.flops / self.time / self.devices


def step_time(
    network: Network, on: str | Hardware, plan: Plan, t: Treatment | None = None,
    *, host: Host | None = None, interleave: int = 1, overlap: float = 0.0,
) -> Step:  # fmt: skip
    """Time a step.

    `interleave` chunks of layers a pipeline stage, `overlap` the share of the exchange between
    replicas that hides beside the backward pass. With `plan.offload`, the host runs the optimiser
    after the backward pass, unless `overlap` lets it run beside it. Raises InfeasibleError for a
    layout that cannot be, NoDataError for a device that cannot be timed.
    """
    t, host = t or Treatment(), host or Host()
    hw = resolve(on) if isinstance(on, str) else on
    told("train", network, hw, plan, t)
    run = _forward(network, hw, plan, t)
    once, flops = _compute(run.timed, network, plan, t)
    again = 1.0 if plan.recompute == "full" else 0.0
    once += _adapted(network, hw, plan, t) * (3.0 + again)  # as the products beside them
    pp, micro = plan.layout.pp, plan.accumulate
    each = once / pp
    compute = each * micro
    bubble = each * (pp - 1) / interleave if pp > 1 else 0.0
    extra = float(run.parts.get("pipeline", np.zeros(1))[0]) * 2.0 * micro / pp * interleave
    exchange = _exchange(network, hw, plan, t) * (1.0 - overlap)
    optimiser, waiting = _optimiser(network, hw, plan, t, host), 0.0
    if plan.offload:
        speed = fetch_bandwidth(hw, host, "host")
        waiting = max(_moved(network, plan, t) / speed - compute, 0.0)
        hidden = min(overlap * compute, optimiser)
        optimiser -= hidden
    devices = plan.layout.devices * plan.data
    tokens = plan.batch * plan.length * micro * plan.data
    parts = {k: float(v[0]) for k, v in run.timed.by_part().items()}
    return Step(compute, exchange + extra, bubble, optimiser, waiting,
                flops * micro * plan.data, flops * micro * plan.data * (1.0 + again / 3.0),
                tokens, devices, parts)  # fmt: skip


def _forward(network: Network, hw: Hardware, plan: Plan, t: Treatment) -> Pass:
    formats = formats_of(network, hw, treatment=t)
    plain = replace(engine("hf"), graph=True)  # work is queued far ahead of the device
    machine = Machine(hw, plan.layout, formats, plain)
    length = float(plan.length)
    group = Tokens(plan.batch, length, length, np.ceil(length * plan.logits))
    return run_pass(network, machine, [group], t)


def _adapted(network: Network, hw: Hardware, plan: Plan, t: Treatment) -> float:
    """Seconds of adapters in a forward pass, beside every linear layer: down, up, and the sum.

    Inputs are read again, a product of rank columns goes out and comes in, the result is added.
    """
    rank, seconds = t.tuning.rank, 0.0
    if not rank:
        return 0.0
    group = Tokens(plan.batch, float(plan.length), float(plan.length), 0.0)
    for c in network.calls([group], plan.layout):
        if c.op != "gemm" or c.role != "linear":
            continue
        m, n, k = (float(np.max(c.fields[x])) for x in ("m", "n", "k"))
        pieces = 3.0 if c.part == "qkv" else 1.0
        flops = {"bf16" if hw.supports("bf16") else "fp16": 2.0 * m * rank * (pieces * k + n)}
        read = 2.0 * (pieces * m * (k + rank) + 2.0 * m * n)
        written = 2.0 * (pieces * m * rank + 2.0 * m * n)
        work = Work(flops, read, written, launches=3.0 * pieces)
        seconds += float(analytic_time(work, hw, "cold")) * float(np.max(c.count))
    return seconds


def _compute(timed: Timed, network: Network, plan: Plan, t: Treatment) -> tuple[float, float]:
    """Seconds of forward, backward and recomputation of one micro-batch, and model flop."""
    share = min(trained_parameters(network, t) / network.parameters, 1.0) * t.tuning.layers
    seconds = 0.0
    for i, call in enumerate(timed.calls):
        once = float(timed.time[i, 0])
        if not t.tuning.backward:
            seconds += 2.0 * once  # two forward passes, at two points
            continue
        back = (1.0 + share) if call.op in ("gemm", "moe") else 1.0
        back = _ATTENTION_BACKWARD if call.op == "attention" else back
        again = 0.0
        if plan.recompute == "full" and call.role != "head":
            again = 1.0
        elif plan.recompute == "selective" and call.op == "attention":
            again = 1.0
        seconds += once * (1.0 + back * t.tuning.reach + again)
    return seconds, model_flops(network, plan)


def model_flops(network: Network, plan: Plan) -> float:
    """Operations of forward and backward of one micro-batch on all devices of a replica.

    Six a parameter and token, and those of attention (causal: half of the scores), three times.
    """
    tokens = plan.batch * plan.length
    found = 6.0 * _active(network) * tokens
    group = Tokens(plan.batch, float(plan.length), float(plan.length), 0.0)
    for c in network.calls([group], Layout()):
        if c.op == "attention":
            f = {k: float(np.max(v)) for k, v in c.fields.items() if not isinstance(v, str | bool)}
            wide = f["head_dim"] + f.get("v_head_dim", f["head_dim"])
            masked = 1.0 if c.fields.get("causal") is False else 0.5
            scores = f["batch"] * f["q_heads"] * f["q_len"] * f["kv_len"] * masked
            found += 3.0 * 2.0 * scores * wide * float(np.max(c.count))
    return found


def _active(network: Network) -> float:
    kinds = [w for w in network.weights() if w.role != "embedding" or w.per_token == 1.0]
    return sum(w.total * w.per_token for w in kinds)


def _exchange(network: Network, hw: Hardware, plan: Plan, t: Treatment) -> float:
    """Seconds of gradients between replicas; with ZeRO-3, of weights too, forward and backward."""
    if plan.data == 1:
        return 0.0
    shards = plan.layout.tp * plan.layout.pp
    near = max(1, plan.layout.gpus_per_node // plan.layout.stage_devices)
    near = max(d for d in range(1, min(near, plan.data) + 1) if plan.data % d == 0)

    def taken(kind: str, size: float) -> float:
        op = Collective(kind=kind, bytes=max(size, 1.0), gpus=plan.data, gpus_per_node=near)
        return float(analytic_time(op.work(), hw, "cold"))

    gradients = t.tuning.gradient_bytes * trained_parameters(network, t) / shards
    if plan.zero < 2:
        return taken("all_reduce", gradients)
    found = taken("reduce_scatter", gradients)
    weights = 2.0 * network.parameters / shards
    if plan.zero == 3:
        passes = 3.0 if plan.recompute == "full" else 2.0
        return found + passes * taken("all_gather", weights) * plan.accumulate
    return found + taken("all_gather", 2.0 * trained_parameters(network, t) / shards)


def _optimiser(
    network: Network, hw: Hardware, plan: Plan, t: Treatment, host: Host
) -> float:  # fmt: skip
    """Seconds of the optimiser's step, on the host where its states live there."""
    if not t.tuning.backward:
        return 0.0
    own = trained_parameters(network, t) * t.tuning.layers / plan.layout.devices
    own /= plan.data if plan.zero >= 1 else 1
    size = own * (_ADAM if t.tuning.master_bytes else 12.0)
    if "states" in plan.offload:
        return size / host.memory_bandwidth
    return float(analytic_time(Work({"vector": 13.0 * own}, size * 0.6, size * 0.4), hw, "cold"))


def _moved(network: Network, plan: Plan, t: Treatment) -> float:
    """Bytes over the link to the host in a step, of the direction that has more.

    Weights come forward and backward (again for a recomputed pass), gradients go, updated weights
    come back where only states live there; activations go and come.
    """
    shards = plan.layout.tp * plan.layout.pp * (plan.data if plan.zero == 3 else 1)
    weights = 2.0 * network.parameters / shards
    trained = trained_parameters(network, t) * t.tuning.layers / plan.layout.devices
    trained /= plan.data if plan.zero >= 2 else 1
    out = t.tuning.gradient_bytes * trained if t.tuning.backward else 0.0
    came = 0.0
    if "weights" in plan.offload:
        # forward-only tuning writes what it updates back with the block that it fetched
        came = weights * (2.0 if t.tuning.backward else 1.0) * plan.accumulate
        out += 0.0 if t.tuning.backward else weights
    elif "states" in plan.offload:
        came = 2.0 * trained
    if "activations" in plan.offload:
        a = activations_of(network, plan)
        size = a.inputs if plan.recompute == "full" else a.layers
        out, came = out + size * plan.accumulate, came + size * plan.accumulate
    return max(out, came)
