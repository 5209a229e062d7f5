"""Products with weights of few bits or partly zero, timed kernel against kernel.

End-to-end figures of the same works come from `low_bit_serving`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...dtypes import dtype
from ...hardware import Hardware
from ...kernels.operator import parts_of
from ...ops.base import Work
from ..verdict import Finding, Found, NotModelled, Property
from .kit import F64, device, gemm_work, reached, seconds, span, time_of, work_of
from .low_bit_serving import (
    end_to_end_comet,
    end_to_end_fast_2bit,
    end_to_end_flash_llm,
    end_to_end_marlin,
)

__all__ = [
    "bfp_outlier_kv",
    "bipolar_int",
    "cats",
    "comet",
    "dgq",
    "fast_2bit",
    "flash_llm",
    "gqsa",
    "lut_gemm",
    "marlin",
    "rag_embedding_quant",
    "shiftquant",
    "sparse_cpu",
    "turbomind",
]

_HALF: dict[str, Any] = {"dtype": "fp16", "out_dtype": "fp16"}
_LLAMA_7B = ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008))
"""(n, k) of the products of a layer of Llama-2-7B: QKV, output, gate and up, down."""


def _low(on: str | Hardware, m: Any, n: Any, k: Any, bits: float, **fields: Any) -> F64:
    """Seconds of a product with weights of few bits."""
    return seconds("low_bit_gemm", on, m=m, n=n, k=k, weight_bits=bits, **{**_HALF, **fields})


def _layer(on: str | Hardware, m: int, bits: float, **fields: Any) -> float:
    """Seconds of the products of a Llama-2-7B layer with weights of few bits."""
    return float(sum(_low(on, m, n, k, bits, **fields) for n, k in _LLAMA_7B))


def _dense_layer(on: str | Hardware, m: int) -> float:
    return float(sum(time_of(gemm_work(m, n, k), on) for n, k in _LLAMA_7B))


# Marlin -------------------------------------------------------------------------------------


def marlin() -> list[Found]:
    """Gain of W4A16 over fp16 by batch, 8192 x 8192 weights, on four Ampere cards."""
    batch = np.array([1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256])
    near, halved, best = [], [], []
    for on in ("a10", "rtx_a6000", "rtx_3090", "a100_sxm"):
        ratio = time_of(gemm_work(batch, 8192, 8192), on) / _low(on, batch, 8192, 8192, 4.0)
        best.append(ratio[batch <= 32])
        near.append(float(batch[ratio >= 0.9 * ratio.max()].max()))
        halved.append(float(batch[ratio <= 0.5 * ratio.max()].min()))
    return [
        Finding(0, span(best), at=f"{np.max(best):.3g} at batch 1 on an A10",
                range="batch 1 to 32; A10, A6000, RTX 3090, A100"),
        Finding(1, span(near), at="largest batch with 90 % of the gain: the RTX 3090 at the low "
                "end, A10 and A6000 at the high end", range="as above"),
        Finding(2, span(halved), at="smallest batch with half of the gain, by card",
                range="as above"),
        end_to_end_marlin(),
    ]  # fmt: skip


# LUT-GEMM -----------------------------------------------------------------------------------


def lut_gemm() -> list[Found]:
    """Time a token of OPT-175B at 3 bits: looked up, or dequantised on the lanes (OPTQ).

    Both read the same codes; what differs is work a weight, which hides behind memory.
    """
    shapes = ((12288, 12288, 4), (49152, 12288, 1), (12288, 49152, 1))
    on, ratios, counts = "a100_sxm", [], (1.0, 2.0, 4.0, 8.0)
    table = sum(c * _low(on, 1, n, k, 3.0, variant="lut", group=128) for n, k, c in shapes)
    for ops in counts:  # codes of 3 bits straddle words: one shift and mask, or several
        wide = sum(
            c * _low(on, 1, n, k, 3.0, unit="lanes", group=0, unpack_ops=ops) for n, k, c in shapes
        )
        ratios.append(float(wide) / float(table))
    held = 96 * sum(
        c * float(work_of("low_bit_gemm", m=1, n=n, k=k, weight_bits=3.0, variant="lut").read)
        for n, k, c in shapes
    )
    return [
        Finding(0, span(ratios), at=reached(ratios, 2.1, (f"{c:.0f} operations" for c in counts)),
                range="batch 1, A100; 1 to 8 integer operations to unpack a 3-bit weight",
                note="memory hides most of the dequantisation: the rest is how well the published "
                "baseline kernel ran"),
        Property("175B at 3 bits fits one device of 80 GB", held < 80e9, f"{held / 1e9:.3g} GB"),
    ]  # fmt: skip


# Unstructured sparsity ----------------------------------------------------------------------


def _overflow(density: float) -> float:
    """Share of weights beyond two in four, each kept with probability `density`."""
    kept, gone = density, 1.0 - density
    return (4.0 * kept**3 * gone + 2.0 * kept**4) / 4.0


def flash_llm() -> list[Found]:
    """Load sparse, compute dense; against Sputnik (lanes), SparTA (2:4 and the rest on lanes)."""
    lanes, split = [], []
    places = []
    for m in (8, 16, 32, 64):
        for zero in (0.7, 0.8, 0.9):
            for n, k in ((28672, 7168), (7168, 7168), (36864, 9216)):
                fields: dict[str, Any] = {"m": m, "n": n, "k": k, **_HALF}
                mine = seconds("sparse_gemm", "a100_sxm", variant="unstructured",
                               density=1.0 - zero, **fields)  # fmt: skip
                sputnik = seconds("sparse_gemm", "a100_sxm", variant="unstructured",
                                  compute="sparse", density=1.0 - zero, **fields)  # fmt: skip
                over = _overflow(1.0 - zero)
                rest = seconds("sparse_gemm", "a100_sxm", variant="unstructured",
                               compute="sparse", density=over, **fields)  # fmt: skip
                sparta = rest + seconds("sparse_gemm", "a100_sxm", **fields)
                lanes.append(float(sputnik / mine))
                split.append(float(sparta / mine))
                places.append(f"batch {m}, {100 * zero:.0f} % zeros")
    where = "batch 8 to 64, 70 to 90 % zeros, OPT-30B and 66B layers, A100"
    return [
        Finding(0, float(np.mean(lanes)), at="mean; nearest: " + reached(lanes, 2.9, places),
                range=where, note="the lanes are taken at their peak; Sputnik reaches a fraction"),
        Finding(1, float(np.mean(split)), at="mean; nearest: " + reached(split, 1.5, places),
                range=where),
        *end_to_end_flash_llm(),
    ]  # fmt: skip


def sparse_cpu() -> list[Found]:
    """Block-sparse int8 products against dense ones on the same cores, 70 to 90 % zero.

    BERT-base layers of 128 tokens, 8 to 64 sequences, on 32 cores of an Ice Lake Xeon: 256 int8
    operations a clock and core (VNNI, two ports), 2.9 GHz; DDR4-3200 on 8 channels (Intel ARK).
    Results leave as int8.
    """
    peak, bandwidth = 32 * 256 * 2.9e9, 8 * 25.6e9
    ratios, places = [], []
    for m in (1024, 8192):
        for zero in (0.7, 0.8, 0.9):
            time = [0.0, 0.0]
            for n, k in ((2304, 768), (768, 768), (3072, 768), (768, 3072)):
                for i, kept in enumerate((1.0, 1.0 - zero)):
                    moved = n * k * kept * (1.0 + i / 4.0) + m * (k + n)
                    time[i] += max(2.0 * m * n * k * kept / peak, moved / bandwidth)
            ratios.append(time[0] / time[1])
            places.append(f"{m} rows, {100 * zero:.0f} % zero")
    return [
        NotModelled(0, "other libraries' sparse kernels: their blocks are not described"),
        Finding(1, span(ratios), at=reached(ratios, 5.0, places),
                range="1024 and 8192 rows, 70 to 90 % zero"),
        *(NotModelled(i, "another engine: a scenario") for i in (2, 3, 4)),
    ]  # fmt: skip


def shiftquant() -> list[Found]:
    """Replace fp16 products by int8 ones, with passes that quantise before and rescale after."""
    on, gains, places = "a100_sxm", [], []
    for m in (2048, 8192, 32768):
        for n, k in ((768, 768), (3072, 768), (4096, 4096)):
            wide = float(time_of(gemm_work(m, n, k), on))
            narrow = float(time_of(gemm_work(m, n, k, dtype="int8"), on))
            before = seconds("quantise", on, rows=m, cols=k, dtype="fp16", stored="int8",
                             scaling="group", group=128)  # fmt: skip
            after = seconds("pointwise", on, elements=m * n, dtype="fp16")
            for passes in (before, before + after):
                gains.append(100.0 * (wide / (narrow + float(passes)) - 1.0))
                places.append(f"{m} rows, {n} x {k}")
    return [
        NotModelled(0, "products of 16 bits on a CPU without units for them: its library decides"),
        Finding(1, span(gains), at=reached(gains, 15.3, places),
                range="2048 to 32768 rows, widths 768 to 4096, rescaling fused or not, A100",
                note="narrow layers lose more in the passes than int8 gains"),
        NotModelled(2, "resources of an FPGA"),
        NotModelled(3, "a normalisation in integers on a CPU that is not named"),
    ]  # fmt: skip


def gqsa() -> list[Found]:
    """Batch-1 products: half of the groups of 16 kept at 4 bits; 2 bits; 2:4 in 16 bits."""
    on, ratios2, ratios24 = "a100_sxm", [], []
    for group in (16, 32, 64):
        # a kept group: 4-bit codes, a scale of 16 and a zero of 4 bits, 16 bits of index
        bits = 0.5 * (4.0 + (16.0 + 4.0 + 16.0) / group)
        mine = _layer(on, 1, bits, group=0, scale_bits=0.0, dtype="fp16")
        two = _layer(on, 1, 2.0, group=group, zero_bits=2.0)
        half = float(sum(
            seconds("sparse_gemm", on, m=1, n=n, k=k, **_HALF) for n, k in _LLAMA_7B
        ))  # fmt: skip
        ratios2.append(two / mine)
        ratios24.append(half / mine)
    where = "products of a Llama-2-7B layer at batch 1, groups of 16 to 64, A100"
    places = [f"groups of {g}" for g in (16, 32, 64)]
    return [
        Finding(0, span(ratios2), at=reached(ratios2, 1.26, places),
                range=where, note="bytes differ little; 2-bit kernels lose more to dequantising"),
        Finding(1, span(ratios24), at=reached(ratios24, 2.35, places),
                range=where),
    ]  # fmt: skip


def cats() -> list[Found]:
    """Skip half of the MLP's neurons after the gate, in a token of Llama-2-7B."""
    on = "l40s"
    gains = []
    for context in (128, 1024, 4096):
        mixing = float(seconds("attention", on, q_len=1, kv_len=context, q_heads=32, head_dim=128))
        same = sum(float(time_of(gemm_work(1, n, k), on)) for n, k in _LLAMA_7B[:2]) + mixing
        gate, up = gemm_work(1, 11008, 4096), gemm_work(1, 4096, 11008)
        skipped = gemm_work(1, 5504, 4096)
        whole = same + float(2.0 * time_of(gate, on) + time_of(up, on))
        # the kept rows are found by a pass over the gate, then gathered; one launch more
        extra = float(seconds("pointwise", on, elements=11008, ops=2, dtype="fp16"))
        part = same + float(time_of(gate, on) + 2.0 * time_of(skipped, on)) + extra
        gains.append(100.0 * (whole - part) / whole)
    return [
        NotModelled(0, "an input: how many neurons fall below the threshold"),
        Finding(1, span(gains), at="4K tokens of context", tolerance=0.3,
                range="batch 1, 128 to 4096 tokens of context, L40S"),
    ]  # fmt: skip


# Mixed integer products ---------------------------------------------------------------------


def comet() -> list[Found]:
    """W4Ax: a share of the columns with 8-bit activations, the rest with 4-bit ones, A100."""
    ratios, places = [], []
    for eight in (0.1, 0.25, 0.4):
        for m in (16, 64, 256):
            time = 0.0
            for n, k in _LLAMA_7B:
                low = int(k * (1.0 - eight)) // 128 * 128
                parts = (("int4", low), ("int8", k - low))
                works = [
                    work_of("low_bit_gemm", m=m, n=n, k=part, weight_bits=4.0, variant="mixed",
                            dtype=kind, out_dtype="fp16", scales_on="sums") for kind, part in parts
                ]  # fmt: skip
                time += float(time_of(_together(works), "a100_sxm"))
            ratios.append(_dense_layer("a100_sxm", m) / time)
            places.append(f"batch {m}, {100 * eight:.0f} % of the depth at 8 bits")
    return [
        Finding(0, span(ratios), at=reached(ratios, 2.88, places),
                range="Llama-2-7B layers, batch 16 to 256, 10 to 40 % of the depth at 8 bits"),
        end_to_end_comet(),
    ]  # fmt: skip


def _together(works: Sequence[Work]) -> Work:
    """One kernel that does several works."""
    units = {unit for work in works for unit in work.flops}
    flops = {unit: sum(np.asarray(w.flops.get(unit, 0.0)) for w in works) for unit in units}
    return Work(flops, sum(w.read for w in works), max(float(w.written) for w in works))


def dgq() -> list[Found]:
    """W4A8 against W4A16, both kernels dequantising in the main loop."""
    ratios, places = [], []
    for on in ("a100_sxm", "rtx_3090"):
        for m in (1, 32, 64, 128, 256, 1024, 4096):
            wide = _layer(on, m, 4.0)
            narrow = sum(
                float(seconds("low_bit_gemm", on, m=m, n=n, k=k, weight_bits=4.0, variant="mixed",
                              dtype="int8", out_dtype="fp16")) for n, k in _LLAMA_7B
            )  # fmt: skip
            ratios.append(wide / narrow)
            places.append(f"{m} tokens on {on}")
    return [
        NotModelled(0, "memory of a whole model: a scenario"),
        Finding(1, span(ratios), at="nearest: " + reached(ratios, 3.24, places),
                range="1 to 4096 tokens, Llama-2-7B layers, A100 and RTX 3090",
                note="int8 runs at twice the rate of fp16 on the A100, at four times on the 3090"),
    ]  # fmt: skip


def bipolar_int() -> list[Found]:
    """Bit planes on the 1-bit matrix unit against a CUTLASS product in the next wider format.

    1-bit peak: 8 times that of int8 (4,992 against 624 TOP/s, A100 whitepaper v1.0; the same ratio
    on other Ampere cards). Every pair of planes is a pass; recombining them hides.
    """
    hw = device("rtx_3090")
    planes = 8.0 * hw.rate("int8")
    ratios, places = [], []
    for weights, acts in ((1, 2), (2, 2), (1, 3), (2, 3), (3, 3), (3, 4), (4, 4)):
        for m in (1024, 4096):
            flops = 2.0 * m * 4096 * 4096
            held = (4096 * 4096 * weights + m * 4096 * acts) / 8.0 + 2.0 * m * 4096
            mine = max(weights * acts * flops / planes, held / hw.memory.bandwidth)
            wider = float(time_of(gemm_work(m, 4096, 4096, dtype="int4"), hw))
            ratios.append(wider / (mine + hw.launch_latency))
            places.append(f"{weights}-bit weights, {acts}-bit activations, {m} rows")
    return [
        Finding(0, span(ratios), at=reached(ratios, 2.4, places),
                range="1 to 4 bits on either side, 1024 and 4096 rows, 4096 x 4096 weights, "
                "RTX 3090 against int4",
                note="with 3 bits and more on both sides the model shows a loss"),
        NotModelled(1, "a whole model with a baseline that the source does not name"),
    ]  # fmt: skip


# Dequantisation beside memory ---------------------------------------------------------------


def _serial_and_overlapped(hw: Hardware, work: Work) -> tuple[float, float, float]:
    """Seconds when units take turns and when they overlap, and the lanes' share of the first."""
    parts = {kind: float(np.max(v)) for kind, v in parts_of(work, hw, "cold").items()}
    lanes = sum(parts.get(kind, 0.0) for kind in ("vector", "integer", "special"))
    serial = sum(parts.values())
    return serial, max(parts.values()), lanes / serial


def fast_2bit() -> list[Found]:
    """Two-bit products with dequantisation before, and behind, the loads."""
    gains, shares = [], []
    for on in ("rtx_2080_ti", "rtx_3090", "a100_sxm"):
        for m in (1, 4, 16):
            for unpack in (1.0, 2.0, 4.0):
                work = work_of("low_bit_gemm", m=m, n=11008, k=4096, weight_bits=2.0, group=16,
                               zero_bits=2.0, unpack_ops=unpack, **_HALF)  # fmt: skip
                serial, both, share = _serial_and_overlapped(device(on), work)
                gains.append(serial / both)
                shares.append(100.0 * share)
    where = "1 to 16 rows, groups of 16, 1 to 4 operations to unpack; 2080 Ti, 3090, A100"
    later = "prices of a deployment that the source does not describe"
    return [
        NotModelled(0, "an input: how many groups are kept at 4 bits"),
        Finding(1, span(gains), at=f"largest {max(gains):.3g}", range=where,
                note="what overlap alone can gain; the published kernels also align their loads"),
        end_to_end_fast_2bit(),
        *(NotModelled(i, later) for i in (3, 4)),
        Finding(5, span(shares), at=f"from {min(shares):.3g} % (A100, 1 operation) to "
                f"{max(shares):.3g} %", range=where,
                note="dequantisation need not take half: with one operation a weight on an A100 it "
                "takes far less"),
    ]  # fmt: skip


def turbomind() -> list[Found]:
    """W4A16 products and decode attention over 8-bit keys: units in turn, or overlapped."""
    less, more = [], []
    for on in ("a100_sxm", "h100_sxm", "l40s", "rtx_4090"):
        hw = device(on)
        for m in (1, 16, 64, 128):
            works = [work_of("low_bit_gemm", m=m, n=n, k=k, weight_bits=4.0, **_HALF)
                     for n, k in _LLAMA_7B]  # fmt: skip
            works.append(work_of("attention", q_len=1, kv_len=2048, q_heads=32, head_dim=128,
                                 batch=m, dtype="fp16", kv_dtype="int8"))  # fmt: skip
            pairs = [_serial_and_overlapped(hw, work)[:2] for work in works]
            serial, both = (sum(p[i] for p in pairs) for i in (0, 1))
            less.append(100.0 * (serial - both) / serial)
            more.append(100.0 * (serial / both - 1.0))
    where = "batch 1 to 128, Llama-2-7B layers with 2K of context; A100, H100, L40S, RTX 4090"
    note = "overlapping what takes turns; the largest published gains also hold other differences"
    at = f"least {min(less):.3g} %, most {max(less):.3g} % less time"
    return [
        Finding(0, span(less), at=at, range=where, note=note),
        Finding(1, float(np.mean(less)), at="mean; " + at, range=where),
        Finding(2, span(more), at=at, range=where, note=note),
        Finding(3, float(np.mean(more)), at="mean; " + at, range=where),
    ]  # fmt: skip


# Bytes alone --------------------------------------------------------------------------------


def rag_embedding_quant() -> list[Found]:
    """Bytes of stored embeddings: 8 bits for 32, and half of the dimensions."""
    wide = dtype("fp32").bytes_of(1.0)
    return [
        Finding(0, wide / dtype("fp8_e4m3").bytes_of(1.0), at="every dimension kept"),
        Finding(
            1, wide / (0.5 * dtype("fp8_e4m3").bytes_of(1.0)), at="half of the dimensions kept"
        ),
        Finding(2, wide / dtype("int8").bytes_of(1.0), at="every dimension kept"),
    ]


def bfp_outlier_kv() -> list[Found]:
    """Bytes of a cached element: bf16 against 8-bit mantissas with a shared exponent."""
    gains = [16.0 / (8.0 + 8.0 / block) for block in (16, 32, 64, 128)]
    return [Finding(0, span(gains), at="blocks of 128", range="blocks of 16 to 128 elements")]
