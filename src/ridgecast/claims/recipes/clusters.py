"""Training over slow links, far memory and failures; and what need not be trained."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from ...errors import InfeasibleError
from ...hardware import Hardware, Link, resolve
from ...models import get
from ...models.network import Layout
from ...scenario import Host
from ...techniques import Treatment, treatment_of
from ...training import Plan, step_time, training_memory
from ..verdict import Finding, Found, NotModelled, Property
from .kit import span

__all__ = ["cxl_finetune", "holmes", "pipette", "pockengine", "reft"]


def _linked(name: str, network: float) -> Hardware:
    """Return a device whose network gives so many bytes/s."""
    plain = resolve(name)
    return replace(plain, links={**plain.links, "network": Link(network, 5e-6)})


def cxl_finetune() -> list[Found]:
    """Optimiser states or activations on CXL memory: a 7B on an A100, 4k to 32k tokens.

    Host memory gives 115 GB/s a device, a CXL card 26 GB/s (PCIe 5.0 x8 with its protocol), two
    striped 52: above the device's own link.
    """
    network = get("mistral-7b")
    link = resolve("a100_sxm").links["pcie"].bandwidth
    near, card = Host(), 26e9
    told, slower, lost, won = [], True, True, True
    for length in (4096, 32768):
        states = Plan(1, length, recompute="full", offload=frozenset({"states"}), logits=0.1)
        local = step_time(network, "a100_sxm", states, host=near).optimiser
        far = step_time(network, "a100_sxm", states, host=Host(memory_bandwidth=card)).optimiser
        slower &= far > 1.5 * local
        acts = replace(states, recompute="none", offload=frozenset({"activations"}))
        steps = [step_time(network, "a100_sxm", acts, host=Host(memory_bandwidth=b)).time
                 for b in (near.memory_bandwidth, card / 2, 2 * card)]  # fmt: skip
        lost &= steps[1] >= steps[0]
        won &= steps[2] <= 1.01 * steps[0]
        told.append(f"{length} tokens: update {local:.2f} s, on CXL {far:.2f} s; step "
                    f"{steps[0]:.2f} s with activations in host memory, {steps[1]:.2f} on a card "
                    f"shared by two, {steps[2]:.2f} on two")  # fmt: skip
    return [
        Property("the host's update slows with its states on CXL", slower, told[0]),
        Property("activations wait for one shared card, not for two striped ones", won and lost,
                 f"{told[1]}; the device's link gives {link / 1e9:.0f} GB/s"),
    ]  # fmt: skip


def reft() -> list[Found]:
    """Snapshots into host memory against checkpoints on storage: a 13B on 64 devices.

    Young's rule (CACM 17, 1974): with a snapshot of d seconds and a failure each M seconds, the
    best interval is sqrt(2 d M) and the loss sqrt(2 d / M).
    """
    state = 16.0 * get("llama-13b").parameters
    between = 8 * 3600.0  # s between failures of a job, swept below
    nodes, link, storage = 8, 8 * 32e9, 20e9  # a node's links to its host; shared storage
    coded = state / nodes / (nodes - 1)  # a parity block of each node's share goes to another
    ours = state / nodes / link + coded / 25e9
    theirs = state / storage
    rows, holds = [], True
    for mean in (between / 8, between, between * 8):
        waits = [sqrt(2.0 * d * mean) for d in (ours, theirs)]
        loss = [100.0 * sqrt(2.0 * d / mean) for d in (ours, theirs)]
        at_same = ours / (theirs / waits[1])  # interval that costs as much time as storage's
        holds &= at_same < waits[1] and loss[0] < loss[1]
        rows.append(f"a failure each {mean / 3600:.0f} h: every {waits[0]:.0f} s for "
                    f"{loss[0]:.2g} %, on storage {waits[1]:.0f} s, {loss[1]:.2g} %")  # fmt: skip
    return [Property("more snapshots for the same overhead, less work lost", holds,
                     "; ".join(rows))]  # fmt: skip


def holmes() -> list[Found]:
    """Two clusters of A100s joined by Ethernet: replicas inside, stages across; Falcon-40B.

    25 GB/s a device inside a cluster (RDMA), 3 GB/s between (25 Gb/s Ethernet).
    """
    network, t = get("falcon-40b"), Treatment()
    layout = Layout(tp=8, pp=2)
    plan = Plan(1, 2048, data=4, layout=layout, accumulate=32, recompute="full")
    rdma, slow = (step_time(network, _linked("a100_sxm", b), plan, t) for b in (25e9, 3.1e9))
    alone = replace(plan, data=1)
    stages = [step_time(network, _linked("a100_sxm", b), alone, t).exchange for b in (25e9, 3.1e9)]
    mixed = rdma.time + stages[1] - stages[0]  # only messages between stages cross
    told = (f"RDMA everywhere {rdma.time:.2f} s a step, by kind of link {mixed:.2f} s, Ethernet "
            f"everywhere {slow.time:.2f} s")  # fmt: skip
    return [
        Property("placed by kind of link: near RDMA everywhere", mixed < 1.1 * rdma.time, told),
        Property("and faster than Ethernet everywhere", mixed < slow.time, told),
    ]  # fmt: skip


def _plans(devices: int, batch: int) -> list[Plan]:
    found = []
    for tp in (1, 2, 4, 8):
        for pp in (1, 2, 4, 8, 16):
            data = devices // (tp * pp)
            if data >= 1 and batch % data == 0:
                found.append(Plan(1, 2048, data=data, layout=Layout(tp=tp, pp=pp),
                                  accumulate=batch // data, zero=1, recompute="full"))  # fmt: skip
    return found


def pipette() -> list[Found]:
    """Choose layouts of a 30B on 128 V100s for the links that there are, or for nominal ones.

    Attained bandwidth between nodes is a quarter of the nominal 12.5 GB/s a device.
    """
    network = get("opt-30b")
    nominal, attained = _linked("v100_sxm", 12.5e9), _linked("v100_sxm", 3.1e9)
    able, refused = [], 0
    for plan in _plans(128, 512):
        try:
            if training_memory(network, plan).total > 0.95 * nominal.memory.capacity:
                refused += 1
                continue
            able.append((step_time(network, nominal, plan).time,
                         step_time(network, attained, plan).time, plan))  # fmt: skip
        except InfeasibleError:
            continue
    blind = min(able, key=lambda row: row[0])
    known = min(able, key=lambda row: row[1])
    names = [f"tp {p.layout.tp} pp {p.layout.pp} dp {p.data}" for p in (blind[2], known[2])]
    told = (f"{len(able)} layouts fit, {refused} do not; {names[0]} by nominal links takes "
            f"{blind[1]:.2f} s, {names[1]} by attained ones {known[1]:.2f} s")  # fmt: skip
    return [
        Property("the plan fits memory, others were refused", refused > 0 and bool(able), told),
        Property("and is no slower than the one by nominal links", known[1] <= blind[1], told),
    ]  # fmt: skip


def pockengine() -> list[Found]:
    """Backward passes of the last layers alone: what they hold, LLaMA-2-7B.

    5 of 32 layers, as in the source, to a half of them; weights are not counted as backward's.
    """
    network, plan = get("llama-2-7b"), Plan(1, 512)
    base = training_memory(network, plan)
    held = base.activations + base.gradients + base.states
    gains = {}
    for layers in (5, 8, 16):
        m = training_memory(network, plan, treatment_of(f"pockengine:layers={layers / 32}"))
        gains[layers] = held / (m.activations + m.gradients + m.states)
    gone = "the device is not in the catalogue, and the baseline is a framework's overhead"
    return [
        NotModelled(0, gone),
        Finding(1, span(list(gains.values())), at=f"{gains[5]:.3g} with 5 of 32 layers",
                range="5 to 16 of 32 layers, one sequence of 512 tokens"),
        NotModelled(2, gone),
        NotModelled(3, gone),
    ]  # fmt: skip
