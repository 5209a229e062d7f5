"""Kernels by themselves: tiles, fusion, launches, packing, softmax, recurrences, hash tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels import TiledConfig, problem
from ...kernels.tiled import tiled
from ..verdict import Finding, Found, NotModelled, Property
from .kit import device, gemm_work, reached, seconds, span, time_of, work_of

__all__ = [
    "flashdecoding_pp",
    "flashrnn",
    "flashsvd",
    "fused_kernel_library",
    "gpperf",
    "scaling_dora",
    "skip_coupled",
    "tempi",
    "two_pass_softmax",
    "warpcore",
]


def gpperf() -> list[Found]:
    """Sweep the tile side of the naive shared-memory kernel on the RTX 4070, 512 to 8192."""
    from ...ops.gemm import Gemm
    from ...predict import predict

    hw, sides, shapes = device("rtx_4070"), (1, 2, 4, 8, 16, 32), (512, 1024, 2048, 4096, 8192)
    best, gains, places, drawn = [], [], [], []
    for n in shapes:
        p = problem(n, n, n, dtype="fp32")
        time = np.array([float(tiled(p, TiledConfig(s), hw).time) for s in sides])
        best.append(float(sides[int(time.argmin())]))
        gains += [float(t / time.min()) for t in time]
        places += [f"side {s} as the baseline, {n} cubed" for s in sides]
    for side in (8, 32):
        one, other = (
            predict(Gemm(4096, 4096, 4096, dtype="fp32"), on=hw, config=TiledConfig(s)).power
            for s in (16, side)
        )
        if one is not None and other is not None:
            drawn.append(100.0 * (1.0 - one / other))
    rows = "needs the published rows: `ridgecast study --replay gpperf`"
    power = (
        Finding(
            6,
            span(drawn),
            at="side 16 against sides 8 and 32, 4096 cubed",
            note="tiles that keep the lanes as busy draw as much; the published samples were "
            "taken after the kernel had ended",
        )
        if drawn
        else NotModelled(6, "no power of this kernel")
    )
    return [
        *(NotModelled(i, rows) for i in range(5)),
        Finding(
            5,
            span(gains),
            at="best side: " + reached(gains, 3.2, places),
            range="sides 1 to 32 as the baseline, 512 to 8192 cubed",
        ),
        power,
        Finding(
            7,
            span(best),
            at="side 16 at 512, side 32 by 1 to 3 % from 1024 on",
            range="512 to 8192 cubed",
        ),
    ]


# Fusion and launches ------------------------------------------------------------------------


def fused_kernel_library() -> list[Found]:
    """Fuse a chain of element-wise functions, or a batch of small images, into one kernel."""
    gains, places = [], []
    for elements in (60 * 120 * 3, 1920 * 1080, 3840 * 2160):
        for ops in (2, 5, 20, 100, 1000):
            shape = {"elements": elements, "ops": ops, "dtype": "fp32"}
            apart = seconds("pointwise", "rtx_4090", "hot", fused=False, **shape)
            gains.append(float(apart / seconds("pointwise", "rtx_4090", "hot", **shape)))
            places.append(f"{ops} functions of {elements} elements")
    for images in (10, 50, 150):
        shape = {"elements": 60 * 120 * 3, "ops": 10, "tensors": images, "dtype": "fp32"}
        apart = seconds("pointwise", "rtx_4090", "hot", fused=False, **shape)
        gains.append(
            float(apart / seconds("pointwise", "rtx_4090", "hot", horizontal=True, **shape))
        )
        places.append(f"10 functions of {images} small images")
    return [
        Finding(
            0,
            span(gains),
            at="2: " + reached(gains, 2.0, places) + "; 1000: " + reached(gains, 1000.0, places),
            range="2 to 1000 functions, 22 k to 8.3 M elements, 1 to 150 images, RTX 4090",
        )
    ]


def scaling_dora() -> list[Found]:
    """Compose DoRA's output in four kernels or one; and build W + s B A densely or not.

    Four dense tensors: the product, scaled, added to the weights, squared for the norm.
    """
    dense = 4.0 * 8192 * 8192 * 2.0
    ratios, bytes_ratio = [], []
    for on in ("l40s", "a100_sxm", "rtx_pro_6000", "h200_sxm", "b200_sxm", "b300_sxm"):
        for width in (4096, 8192):
            shape: dict[str, Any] = {"elements": width * 4096, "ops": 4, "inputs": 2}
            apart = work_of("pointwise", fused=False, **shape)
            whole = work_of("pointwise", **shape)
            ratios.append(float(time_of(apart, on) / time_of(whole, on)))
            bytes_ratio.append(float(apart.moved) / float(whole.moved))
    later = "a whole model: a scenario"
    return [
        Finding(0, dense / 1e6, at="four tensors of 8192 x 8192 in bf16"),
        Finding(
            1,
            float(np.mean(bytes_ratio)),
            at="two tensors in, one out",
            note="a chain of four kernels reads one new tensor and its predecessor's result",
        ),
        *(NotModelled(i, later) for i in (2, 3, 4)),
        Finding(
            5,
            span(ratios),
            at=f"{min(ratios):.3g} to {max(ratios):.3g}, by device",
            range="4096 tokens, width 4096 and 8192; L40S, A100, RTX PRO 6000, H200, B200, B300",
            note="every device lies near the ratio of bytes; the published low end is a device on "
            "which the unfused kernels found their inputs in cache",
        ),
    ]


def flashsvd() -> list[Found]:
    """Activations of a BERT-Base block with rank-r factors: separate kernels, or streamed.

    Per token, in widths: input, first factor's output (r), hidden (4), output; streamed kernels
    keep input, output and the two rank-r products only.
    """
    ranks = (0.25, 0.4, 0.5, 0.6)
    peak = [100.0 * (1.0 - (2.0 + 2.0 * r) / (6.0 + r)) for r in ranks]
    transient = [100.0 * (1.0 - 2.0 * r / (4.0 + r)) for r in ranks]
    places = [f"rank {r} of the width" for r in ranks]
    where = "ranks of 0.25 to 0.6 of the width, one feed-forward block"
    return [
        Finding(0, span(peak), at=reached(peak, 70.2, places), range=where),
        Finding(1, span(transient), at=reached(transient, 75.0, places), range=where),
        NotModelled(2, "quality at a parameter count: not a cost"),
    ]


def tempi() -> list[Found]:
    """Pack a strided object: a copy for each block, or one kernel (V100, as in Summit)."""
    on, ratios, sends, places = "v100_sxm", [], [], []
    for size in (1 << 10, 1 << 16, 1 << 20, 1 << 22):
        for block in (1, 8, 128, 1024):
            blocks = max(size // block, 1)
            apart = float(seconds("launch", on, kernels=blocks)) + 2.0 * size / 900e9
            packed = float(seconds("pointwise", on, elements=size // 2, dtype="fp16"))
            # EDR InfiniBand: 12.5 GB/s and 1.5 us (Summit, two ports a node, one a process here)
            wire = size / 12.5e9 + 1.5e-6
            ratios.append(apart / packed)
            sends.append((2.0 * apart + wire) / (2.0 * packed + wire))
            places.append(f"{size >> 10} KiB in blocks of {block} B")
    where = "objects of 1 KiB to 4 MiB, blocks of 1 B to 1 KiB"
    return [
        Finding(0, span(ratios), at=reached(ratios, 242000.0, places), range=where),
        Finding(
            1,
            span(sends),
            at=reached(sends, 59000.0, places),
            range=where,
            note="the wire's time bounds the gain of a send",
        ),
        NotModelled(2, "3072 processes that exchange halos: no such workload here"),
    ]


def flashrnn() -> list[Found]:
    """Run all steps in one kernel with weights on chip, against a framework's kernels a step.

    A step of a framework's LSTM or sLSTM is two products and 8 to 20 element-wise kernels.
    """
    ratios, places = [], []
    for cell, heads in (("lstm", 1), ("slstm", 12)):
        for kernels in (10, 16, 22):
            for batch in (1, 16, 64):
                one = float(
                    seconds(
                        "recurrent",
                        "h100_sxm",
                        "hot",
                        steps=1024,
                        hidden=768,
                        batch=batch,
                        cell=cell,
                        heads=heads,
                        variant="persistent",
                    )
                )
                host = float(seconds("launch", "h100_sxm", kernels=kernels, rounds=1024))
                ratios.append(host / one)
                places.append(f"{cell}, {kernels} kernels a step, batch {batch}")
    fits = int(np.sqrt(33e6 / 2.0 / 4.0))
    return [
        Finding(
            0,
            span(ratios),
            at=reached(ratios, 50.0, places),
            range="hidden size 768, 1024 steps, batch 1 to 64, H100",
        ),
        NotModelled(1, "the limit of the authors' own Triton kernel is a limit of its compiler"),
        Property("on-chip memory sets the largest hidden size", fits < 4096,
                 f"an LSTM's recurrent weights in bf16 fill 33 MB at {fits} units"),
    ]  # fmt: skip


# Softmax ------------------------------------------------------------------------------------

_CLOCK = 3.7e9
"""Hz: Xeon W-2135, base clock (Intel ARK); the machine of arXiv:2001.04438."""


def two_pass_softmax() -> list[Found]:
    """Softmax of 32 to 256 MB on one core: bytes of three sweeps over those of two.

    Instructions of the lanes and bytes overlap as in the analytic time of any operation.
    """
    gains: dict[int, list[float]] = {16: [], 8: []}
    for lanes, found in gains.items():
        rate = lanes * 2 * _CLOCK  # two units, an instruction a clock each
        for bandwidth in (12e9, 16e9, 20e9):
            for size in (1 << 23, 1 << 26):
                three, two = (
                    _on_lanes(variant, size, rate, bandwidth)
                    for variant in ("three_pass_recompute", "two_pass")
                )
                found.append(100.0 * (three / two - 1.0))
    bytes_ratio = 100.0 * (4.0 / 3.0 - 1.0)
    where = "8 M and 64 M elements, 12 to 20 GB/s a core"
    return [
        Finding(
            0, span(gains[16]), at=f"bytes alone allow {bytes_ratio:.3g} %, 16 lanes", range=where
        ),
        Finding(
            1,
            span(gains[8]),
            at="8 lanes",
            range=where,
        ),
    ]


def _on_lanes(variant: str, size: int, rate: float, bandwidth: float) -> float:
    """Seconds where every operation is an instruction of its own and nothing stays in cache.

    An exponential is 12 of them: range reduction, a polynomial of degree 5, scaling.
    """
    work = work_of("softmax", rows=1, cols=size, dtype="fp32", variant=variant)
    count = sum(
        float(np.max(n)) * (12.0 if unit == "special" else 1.0) for unit, n in work.flops.items()
    )
    compute, memory = count / rate, float(work.moved) / bandwidth
    return float((compute**4 + memory**4) ** 0.25)


# Hash tables --------------------------------------------------------------------------------


def warpcore() -> list[Found]:
    """Probe and insert 128 M pairs of 8 bytes on a V100, windows of 4 to 16 slots a transaction."""
    rates: dict[str, list[float]] = {"insert": [], "find": []}
    places = []
    for line in (32, 64, 128):
        for load in (0.5, 0.8, 0.95):
            for mode, found in rates.items():
                time = seconds(
                    "hash_probe",
                    "v100_sxm",
                    queries=1 << 27,
                    keys=1 << 27,
                    load=load,
                    mode=mode,
                    line=line,
                )
                found.append(float((1 << 27) / time))
            places.append(f"windows of {line} B, load {load}")
    where = "windows of 32 to 128 B, load 0.5 to 0.95"
    return [
        Finding(
            0,
            span(rates["insert"]),
            at="nearest: " + reached(rates["insert"], 1.6e9, places),
            range=where,
            note="the model counts sectors at full bandwidth; atomics to random rows of DRAM "
            "reach a fraction of it",
        ),
        Finding(1, span(rates["find"]), at=reached(rates["find"], 4.3e9, places), range=where),
        NotModelled(2, "a load at which others fall behind: their probing is not described"),
        NotModelled(3, "a whole classifier against CPU programs"),
    ]


# Decode kernels -----------------------------------------------------------------------------


def flashdecoding_pp() -> list[Found]:
    """Rows padded to 64 instead of 8; and one dataflow for all shapes instead of the best."""
    wasted = [100.0 * (1.0 - m / 64.0) for m in (1, 8, 16, 32)]
    losses, places = [], []
    for on in ("a100_sxm", "rtx_3090"):
        hw = device(on)
        for m in (1, 2, 4, 8, 16, 32, 64):
            for n, k in ((12288, 4096), (4096, 4096), (11008, 4096), (4096, 11008)):
                work = gemm_work(m, n, k)
                lanes = float(np.maximum(2.0 * m * n * k / hw.rate("fp32", unit="simt"),
                                         work.moved / hw.memory.bandwidth))  # fmt: skip
                padded = gemm_work(max(m, 64), n, k)
                flat = float(time_of(padded, hw))
                both = (lanes + hw.launch_latency, flat)
                losses.append(100.0 * (1.0 - min(both) / max(both)))
                places.append(f"{m} rows of {n} x {k} on {on}")
    later = "a whole model: a scenario"
    return [
        *(NotModelled(i, later) for i in (0, 1, 2)),
        NotModelled(3, "the wait between partial softmaxes is not apart in the kernel model"),
        Finding(
            4,
            span(wasted),
            at="32 rows and fewer, of 64 that are computed",
            range="1 to 32 rows; share of the products that is padding",
        ),
        Finding(
            5,
            span(losses),
            at=reached(losses, 50.25, places),
            range="lanes or matrix unit for all, 1 to 64 rows, Llama-2-7B layers, A100, RTX 3090",
        ),
    ]


# Hosts --------------------------------------------------------------------------------------

_LAUNCH = {"a100": 2.2605e-6, "h100": 2.3746e-6, "gh200": 2.7716e-6}
"""Seconds to launch an empty kernel: AMD + A100, Intel + H100, GH200 (arXiv:2504.11750, table)."""


def skip_coupled() -> list[Found]:
    """Prefill of Llama-3.2-1B in eager mode: the larger of launches and kernels, by machine.

    GH200 is an H100 with HBM3 of 4 TB/s (its datasheet) behind a slower core a launch.
    """
    machines = {
        "a100": device("a100_pcie"),
        "h100": device("h100_pcie"),
        "gh200": device("h100_sxm").what_if({"memory.bandwidth": "4 TB/s"}),
    }
    # a framework spends about 20 us a kernel (assumed); launches say how much more on each host
    crossing = {
        name: _launch_bound_batch(hw, 20e-6 * _LAUNCH[name] / _LAUNCH["h100"])
        for name, hw in machines.items()
    }
    late = {name: _prefill(hw, 64) for name, hw in machines.items()}
    gains = [late[name] / late["gh200"] for name in ("h100", "a100")]
    more = [crossing["gh200"] / crossing[name] for name in ("h100", "a100")]
    return [
        Finding(
            0,
            span(gains),
            at=f"over the H100 {gains[0]:.3g}, over the A100 {gains[1]:.3g}, batch 64",
            range="512 tokens, eager kernels",
            tolerance=0.2,
        ),
        Finding(
            1,
            span(more),
            at=f"over the H100 {more[0]:.3g}, over the A100 {more[1]:.3g}",
            range="512 tokens, batch at which kernels take as long as their launches",
        ),
    ]


def _prefill(hw: Any, batch: int) -> float:
    """Seconds on the device of a layer of Llama-3.2-1B, 512 tokens a sequence, eager."""
    tokens = 512 * batch
    shapes = ((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192))
    time = sum(float(time_of(gemm_work(tokens, n, k), hw)) for n, k in shapes)
    mixing = seconds(
        "attention",
        hw,
        q_len=512,
        kv_len=512,
        q_heads=32,
        kv_heads=8,
        head_dim=64,
        batch=batch,
        dtype="fp16",
        variant="standard",
    )
    chains = seconds("pointwise", hw, elements=tokens * 2048, ops=10, fused=False, dtype="fp16")
    return time + float(mixing + chains)


def _launch_bound_batch(hw: Any, launch: float) -> float:
    """Batch at which the kernels of a layer (about 24) take as long as the host to start them."""
    batches = np.unique(np.round(2.0 ** np.arange(0, 9, 0.25)).astype(int))
    ready = hw.replace(launch_latency=1e-9)  # kernels queue: only their own time counts
    device_time = np.array([_prefill(ready, int(b)) for b in batches])
    return float(np.interp(24 * launch, device_time, batches))
