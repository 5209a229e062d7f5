"""Attention kernels: tiled, sparse, linear, paged, in a ring; and how many bytes it must move.

Sweeps state which sequence lengths, heads and batches stand for what a source leaves open.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...hardware import Hardware
from ...kernels.operator import parts_of
from ...ops.base import Work
from ..verdict import Finding, Found, NotModelled, Property
from .kit import device, gemm_work, reached, seconds, span, time_of, work_of

__all__ = [
    "faster_neighborhood_attention",
    "flashattention",
    "flashattention_2",
    "io_lower_bound",
    "lightning_attention",
    "lightning_attention_2",
    "longgen",
    "minference",
    "mminference",
    "tokenring",
    "vattention",
]


# FlashAttention -----------------------------------------------------------------------------


def _train_layer(
    shape: tuple[int, int, int, int], *, flash: bool, fused: bool, masked: bool = True
) -> float:
    """Seconds of a transformer layer in training (forward and backward, fp16, A100 40 GB).

    `shape` is sequence length, width, heads, sequences.

    Unfused attention in a framework: product, scale, mask, softmax, dropout, product, each a
    kernel. `fused` says whether chains over the tokens (residual, dropout, GELU, which PyTorch code
    of GPT-2 writes as eight operations) are one kernel each. A backward pass is taken as two
    forward passes for products and for chains.
    """
    (seq, width, heads, batch), on = shape, "a100_sxm_40gb"
    tokens = seq * batch
    shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
    products = sum(3.0 * float(time_of(gemm_work(tokens, n, k), on)) for n, k in shapes)
    common: dict[str, Any] = {
        "q_len": seq, "kv_len": seq, "q_heads": heads, "head_dim": width // heads, "batch": batch,
        "causal": masked and flash, "dtype": "fp16", "variant": "flash" if flash else "standard",
    }  # fmt: skip
    mixing = sum(float(seconds("attention", on, backward=b, **common)) for b in (False, True))
    if not flash:
        scores = float(seq) * seq * heads * batch
        chain = seconds("pointwise", on, elements=int(scores), ops=3, fused=fused, dtype="fp16")
        mixing += 3.0 * float(chain)
    gelu, joins = int(4 * tokens * width), int(tokens * width)
    chains = seconds("pointwise", on, elements=gelu, ops=8, fused=fused, dtype="fp16")
    chains = chains + 2.0 * seconds(
        "pointwise", on, elements=joins, ops=2, inputs=2, fused=fused, dtype="fp16"
    )
    norms = 2.0 * seconds("normalisation", on, rows=tokens, cols=width, dtype="fp16")
    return products + mixing + 3.0 * float(chains + norms)


def flashattention() -> list[Found]:
    """Layers in training, with scores through memory and without (Dao et al. 2022, A100 40 GB)."""
    bert = [
        _train_layer((512, 1024, 16, b), flash=False, fused=True, masked=False)
        / _train_layer((512, 1024, 16, b), flash=True, fused=True, masked=False)
        for b in (7, 14, 28, 56)
    ]
    gpt = [
        _train_layer((1024, w, h, b), flash=False, fused=False)
        / _train_layer((1024, w, h, b), flash=True, fused=fused)
        for w, h in ((768, 12), (1024, 16))
        for b in (8, 32)
        for fused in (False, True)
    ]
    arena = [
        _train_layer((s, w, h, 16), flash=False, fused=False)
        / _train_layer((s, w, h, 16), flash=True, fused=False)
        for s in (1024, 2048, 4096)
        for w, h in ((128, 2), (256, 4), (512, 8))
    ]
    return [
        Finding(0, _gain(span(bert)), at="all batches: scores in fp16 through memory, chains fused",
                range="BERT-large, sequence 512, 7 to 56 sequences a GPU, layers only",
                note="the MLPerf code kept more of attention on chip than unfused kernels do"),
        Finding(1, span(gpt), at="near the top: GPT-2 medium with the chains around attention "
                "fused too, as its training code does",
                range="GPT-2 small and medium, 1024 tokens, 8 and 32 sequences a GPU"),
        Finding(2, span(arena), at="sequences of 1K to 2K",
                range="width 128 to 512 (head size 64), sequence 1K to 4K, 16 sequences"),
    ]  # fmt: skip


def _gain(ratios: tuple[float, float]) -> tuple[float, float]:
    """Per cent gained, of two ratios."""
    return 100.0 * (ratios[0] - 1.0), 100.0 * (ratios[1] - 1.0)


# FlashAttention-2 ---------------------------------------------------------------------------

_BENCHMARK = [(s, 16384 // s, h, d) for s in (512, 1024, 2048, 4096, 8192, 16384)
              for h, d in ((32, 64), (16, 128))]  # fmt: skip
"""Section 4.1 of arXiv:2307.08691: 16k tokens, hidden size 2048, head size 64 or 128."""


def _unit_seconds(hw: Hardware, work: Work) -> tuple[float, float]:
    """Seconds of the matrix unit, and of everything that waits for it in the same warp."""
    parts = {kind: float(np.max(v)) for kind, v in parts_of(work, hw, "cold").items()}
    return parts["compute"], parts["vector"] + parts["special"]


def flashattention_2() -> list[Found]:
    """Share of the A100's peak: units that take turns, and blocks that fill the SMs.

    Both versions wait for the exponentials between the two products. The first gives a block all
    queries of a head, so batch x heads blocks fill the machine, and splits keys over four warps,
    which add their partial outputs through shared memory (sections 3.1 to 3.3 of the source).
    """
    hw = device("a100_sxm")
    shares, priors, ratios = [], [], []
    for seq, batch, heads, dim in _BENCHMARK:
        work = work_of("attention", q_len=seq, kv_len=seq, q_heads=heads, head_dim=dim, batch=batch,
                       causal=False, dtype="fp16")  # fmt: skip
        matrix, rest = _unit_seconds(hw, work)
        second = (matrix + rest) / _fill(hw, batch * heads * seq / 128)
        # per block of 128 keys, four partial outputs of fp32 go to shared memory and back
        exchange = 2 * 4 * 4 * dim / 128 * float(seq) * seq * heads * batch / hw.shared.bandwidth
        first = (matrix + rest + exchange) / _fill(hw, batch * heads)
        shares.append(100.0 * matrix / second)
        priors.append(100.0 * matrix / first)
        ratios.append(first / second)
    where = "forward, 16k tokens in sequences of 512 to 16k, head size 64 and 128, no mask"
    places = [f"{s} tokens, head size {d}" for s, _, _, d in _BENCHMARK]
    return [
        Finding(0, span(ratios), at=reached(ratios, 2.0, places), range=where),
        Finding(1, span(shares), at="50 % and 73 %: " + reached(shares, 50.0, places) + "; "
                + reached(shares, 73.0, places), range=where, tolerance=0.2),
        Finding(2, span(priors), at="25 % and 40 %: " + reached(priors, 25.0, places) + "; "
                + reached(priors, 40.0, places), range=where),
        NotModelled(3, "its baselines are frameworks' attention of 2022, not named in the figure"),
        NotModelled(4, "a training run; the training room answers it"),
        Finding(5, 100.0 * 225e12 / hw.rate("fp16"), at="225 TFLOP/s over the device's peak"),
    ]  # fmt: skip


def _fill(hw: Hardware, blocks: float) -> float:
    """Share of the SMs that work, over whole waves of blocks."""
    return blocks / (np.ceil(blocks / hw.sm_count) * hw.sm_count)


# The lower bound ----------------------------------------------------------------------------


def io_lower_bound() -> list[Found]:
    """Tiled traffic beside N^2 d^2 / M for M >= d^2, and blocked products for M < d^2.

    No algorithm moves fewer than the 4 N d elements of inputs and output either.

    Elements moved by FlashAttention's loops (arXiv:2205.14135, algorithm 1): blocks of M / 4d keys
    are read once; Q and O pass once for each. Below M = d^2 square blocks of sqrt(M / 3) multiply
    as in Hong and Kung 1981: N^2 d / sqrt(M) (arXiv:2402.07443, theorem 1.3).
    """
    n, d = np.meshgrid([1024.0, 8192.0, 65536.0], [32.0, 64.0, 128.0], indexing="ij")
    ratios = []
    for factor in (1.0, 4.0, 16.0, 64.0):
        fast = factor * d**2
        keys = np.maximum(fast / (4.0 * d), 1.0)
        moved = 2.0 * n * d + np.ceil(n / keys) * 3.0 * n * d
        ratios.append(moved / np.maximum(n**2 * d**2 / fast, 4.0 * n * d))
    low, high = span(ratios)
    small = [d**2 * factor for factor in (1 / 256, 1 / 64, 1 / 16)]
    switched = all(np.all(n**2 * d / np.sqrt(m) < n**2 * d**2 / m) for m in small)
    meets = np.allclose(n**2 * d / np.sqrt(d**2), n**2 * d**2 / d**2)
    op = work_of("attention", q_len=8192, kv_len=8192, q_heads=1, head_dim=64, causal=False)
    least = 2.0 * 8192**2 * 64**2 / (64 * 1024)  # bytes, M = 64 Ki elements of one SM
    return [
        Property("tiled traffic within a constant of the bound", high < 16.0,
                 f"{low:.3g} to {high:.3g} times max(N^2 d^2 / M, 4 N d), N 1k to "
                 "64k, d 32 to 128, M d^2 to 64 d^2"),
        Property("another scheme below M = d^2", switched and meets,
                 "N^2 d / sqrt(M) is smaller for M = d^2/256 to d^2/16 and equal at M = d^2"),
        Property("the model's compulsory bytes lie below the bound of one SM's memory",
                 float(op.moved) < least,
                 f"{float(op.moved) / 1e6:.3g} MB counted as compulsory, {least / 1e6:.3g} MB "
                 "bound: repeated reads are left to the caches"),
    ]  # fmt: skip


# Sparse prefill -----------------------------------------------------------------------------


def minference() -> list[Found]:
    """Prefill of a Llama-3-8B on an A100: dense, and with few score blocks plus their index."""
    from ...ops.attention import Attention
    from ...ops.gemm import Gemm
    from ...predict import predict

    on, tokens, layers = "a100_sxm", 1_000_000, 32
    heads: dict[str, Any] = {"q_heads": 32, "kv_heads": 8, "head_dim": 128}
    dense = predict(Attention(q_len=tokens, kv_len=tokens, **heads), on=on)
    shapes = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    linear = sum(predict(Gemm(tokens, n, k), on=on).time for n, k in shapes)
    minutes = layers * (dense.time + linear) / 60.0
    gains, places = _sparse_gains(heads, shapes, (131072, 262144, 524288, 1_000_000))
    return [
        Finding(0, minutes, at=f"1M tokens, 32 layers, A100; basis {dense.basis}",
                note="attention reaches another share of the peak in the published engine"),
        Finding(1, span(gains), at=reached(gains, 10.0, places),
                range="128K to 1M tokens, 2 to 30 % of the score blocks, index included"),
    ]  # fmt: skip


def _sparse_gains(
    heads: dict[str, Any], shapes: tuple[tuple[int, int], ...], lengths: tuple[int, ...]
) -> tuple[list[float], list[str]]:
    """Dense over sparse time of a layer's prefill on an A100, and where; index included."""
    on, gains, places = "a100_sxm", [], []
    for length in lengths:
        rest = sum(float(time_of(gemm_work(length, n, k), on)) for n, k in shapes)
        full = float(seconds("attention", on, q_len=length, kv_len=length, **heads))
        # index: the last 64 queries against all keys, and means of 64 tokens against each other
        index = float(seconds("attention", on, q_len=64, kv_len=length, **heads)) + float(
            seconds("attention", on, q_len=length // 64, kv_len=length // 64, **heads)
        )
        for density in (0.02, 0.05, 0.1, 0.3):
            kept = float(seconds("attention", on, q_len=length, kv_len=length, density=density,
                                 index_bytes=4.0, block=64, **heads))  # fmt: skip
            gains.append((full + rest) / (kept + index + rest))
            places.append(f"{length // 1000}K tokens, {100 * density:g} % of the blocks")
    return gains, places


def mminference() -> list[Found]:
    """Prefill of a vision-language model on Qwen2-7B (28 heads, 4 of keys) with few blocks."""
    heads: dict[str, Any] = {"q_heads": 28, "kv_heads": 4, "head_dim": 128}
    shapes = ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944))
    gains, places = _sparse_gains(heads, shapes, (32768, 131072, 524288, 1_000_000))
    return [
        Finding(0, span(gains), at=reached(gains, 8.3, places),
                range="32K to 1M tokens, 2 to 30 % of the score blocks, index included"),
    ]  # fmt: skip


_LLAMA2 = {  # layers, width, query heads, KV heads, feed-forward width, parameters
    "7B": (32, 4096, 32, 32, 11008, 6.74e9), "70B": (80, 8192, 64, 8, 28672, 69.0e9),
}  # fmt: skip


def longgen() -> list[Found]:
    """Keep full attention in a third of the layers, 4K to 16K keys in the others, at 128K."""
    on, length = "a100_sxm", 131072
    cache, prefill, decode, train, places = [], [], [], [], []
    for name, (layers, width, q, kv, ffn, parameters) in _LLAMA2.items():
        heads: dict[str, Any] = {"q_len": length, "kv_len": length, "q_heads": q, "kv_heads": kv}
        shapes = ((width + 256 * kv, width), (width, width), (2 * ffn, width), (width, ffn))
        linear = sum(float(time_of(gemm_work(length, n, k), on)) for n, k in shapes)
        weights, held = 2.0 * parameters, 2.0 * 2.0 * kv * 128 * length * layers
        for window in (4096, 8192, 16384):
            times = {
                (w, back): float(seconds("attention", on, window=w, backward=back, **heads))
                for w in (0, window)
                for back in (False, True)
            }
            share = (1.0 + 2.0 * window / length) / 3.0
            mixed = {back: (times[0, back] + 2.0 * times[window, back]) / 3.0
                     for back in (False, True)}  # fmt: skip
            cache.append(100.0 * (1.0 - share))
            prefill.append((linear + times[0, False]) / (linear + mixed[False]))
            decode.append((weights + held) / (weights + share * held))
            train.append((3.0 * linear + times[0, False] + times[0, True])
                         / (3.0 * linear + mixed[False] + mixed[True]))  # fmt: skip
            places.append(f"Llama-2-{name}, {window} keys")
    less = [100.0 * (1.0 - 1.0 / gain) for gain in train]
    where = "Llama-2 7B and 70B at 128K, 4K to 16K keys in two layers of three"
    found = ((0, train, 1.55), (1, less, 36.0), (2, cache, 62.0), (3, prefill, 1.67),
             (4, decode, 1.41))  # fmt: skip
    return [
        *(Finding(i, span(v), at=reached(v, value, places), range=where) for i, v, value in found),
        NotModelled(5, "an input: tokens of a training run"),
    ]


# Paged caches -------------------------------------------------------------------------------

_SERVED = {  # query heads, KV heads, layers, parameters, devices: models of arXiv:2405.04437
    "Yi-6B": (32, 4, 32, 6.06e9, 1), "Llama-3-8B": (32, 8, 32, 8.03e9, 2),
    "Yi-34B": (56, 8, 60, 34.4e9, 2),
}  # fmt: skip


def vattention() -> list[Found]:
    """Unpaged kernels instead of paged ones, at equal capacity.

    vLLM's own decode kernel runs a block for each query head, so heads that share keys fetch them
    once each through the L2; an unpaged grouped kernel fetches them once.
    """
    hw = device("a100_sxm")
    gains, tables = [], []
    for q, kv, layers, parameters, devices in _SERVED.values():
        for context in (4096, 16384, 32768, 65536):
            for batch in (1, 8, 32):
                cache = 2.0 * 2.0 * kv * 128 * context * batch * layers / devices
                if parameters * 2.0 / devices + cache > 0.9 * hw.memory.capacity:
                    continue
                weights = 2.0 * parameters / devices / hw.memory.bandwidth
                once = cache / hw.memory.bandwidth
                each = max(once, q / kv * cache / hw.l2.bandwidth)
                gains.append((weights + each) / (weights + once))
        paged, plain = (
            seconds("attention", hw, q_len=16384, kv_len=16384, q_heads=q, kv_heads=kv, page=p)
            for p in (16, 0)
        )
        tables.append(float(paged / plain))
    return [
        Finding(0, span(gains), at="Yi-6B, 8 query heads share keys, contexts that fill the memory",
                range="Yi-6B, Llama-3-8B, Yi-34B; 4K to 64K tokens, 1 to 32 sequences that fit"),
        Finding(1, span(tables), at="every model; pages of 16 tokens",
                range="one prefill of 16K tokens",
                note="the bytes of a block table are nothing beside the products; the published "
                "gap is address arithmetic inside one version of the kernel"),
        Finding(2, span(tables), at="every model; pages of 16 tokens", tolerance=0.15,
                range="one prefill of 16K tokens", note="as for the other paged kernel"),
    ]  # fmt: skip


# Linear attention ---------------------------------------------------------------------------


def _rates(variant: str, lengths: list[int], *, backward: bool) -> np.ndarray:
    """Tokens per second of an attention layer of 40 heads at 64K tokens a call."""
    passes = (False, True) if backward else (False,)
    out = []
    for length in lengths:
        time = sum(
            float(seconds("attention", "a100_sxm", q_len=length, kv_len=length, q_heads=40,
                          head_dim=128, batch=65536 // length, variant=variant, backward=b,
                          block=256))
            for b in passes
        )  # fmt: skip
        out.append(65536 / time)
    return np.array(out)


def _constant_speed(*, training: bool) -> list[Found]:
    lengths = [1024, 4096, 16384, 65536]
    linear = _rates("linear", lengths, backward=False)
    soft = _rates("flash", lengths, backward=training)
    flat, falls = linear.min() / linear.max(), soft[-1] / soft[0]
    return [
        Property("linear attention keeps its speed", bool(flat > 0.8),
                 f"slowest over fastest {flat:.3f}, 1K to 64K tokens at 64K tokens a call, A100"),
        Property("softmax attention does not", bool(falls < 0.2),
                 f"64K tokens run at {falls:.3f} of the speed of 1K"),
    ]  # fmt: skip


def lightning_attention() -> list[Found]:
    """Speed of linear and softmax attention over the length of a sequence, forward."""
    return _constant_speed(training=False)


def lightning_attention_2() -> list[Found]:
    """Do the same, softmax forward and backward; and the state does not grow."""
    states = [
        float(work_of("attention", q_len=1, kv_len=n, q_heads=16, head_dim=128,
                      variant="linear").moved)
        for n in (1024, 65536)
    ]  # fmt: skip
    cache = [2.0 * 2.0 * 16 * 128 * n for n in (1024, 65536)]
    same = Property(
        "memory a sequence does not grow",
        states[0] == states[1] < cache[1],
        f"a state of {16 * 128 * 128 * 4 / 1e6:.2g} MB a layer at any length; keys and "
        f"values are {cache[0] / 1e6:.2g} MB at 1K, {cache[1] / 1e6:.3g} MB at 64K",
    )
    return [*_constant_speed(training=True), same]


# Neighbourhood attention --------------------------------------------------------------------


def faster_neighborhood_attention() -> list[Found]:
    """Naive kernels on the lanes against the fused one on the matrix unit, half precision, A100."""
    on, half = "a100_sxm", {"heads": 16, "head_dim": 32, "dtype": "fp16"}
    line, plane = [], []
    for window in (7, 13, 27, 63):
        shape = {"width": 4096, "window": window, "batch": 4, **half}
        line.append(_times("neighbourhood_attention", on, shape, tile=64))
        flat = {"width": 56, "height": 56, "window": min(window, 55), "batch": 16, **half}
        plane.append(_times("neighbourhood_attention", on, flat, tile=8))
    why = "not expressed: an unfused variant on the matrix unit"
    note = "the naive kernels are taken at the lanes' peak; real ones reach a fraction of it"
    return [
        *(NotModelled(i, why) for i in range(4)),
        Finding(4, float(100.0 * (np.mean(line) - 1.0)), at=f"mean; widest window {line[-1]:.3g}x",
                note=note,
                range="4096 tokens, windows of 7 to 63, head size 32"),
        Finding(5, float(100.0 * (np.mean(plane) - 1.0)), note=note,
                at=f"mean; widest window {plane[-1]:.3g}x",
                range="56 x 56 tokens, windows of 7 x 7 to 55 x 55, head size 32"),
    ]  # fmt: skip


def _times(op: str, on: str, fields: dict[str, Any], tile: int) -> float:
    """Naive over fused time."""
    slow = seconds(op, on, variant="naive", **fields)
    return float(slow / seconds(op, on, variant="fused", tile=tile, **fields))


# Rings --------------------------------------------------------------------------------------


def tokenring() -> list[Found]:
    """Compare a ring that passes keys and values with one of queries and outputs."""
    base: dict[str, Any] = {"heads": 32, "kv_heads": 32, "head_dim": 128, "causal": False}
    hw = device("a10")
    bound_at = None
    for devices in (2, 4, 8, 16, 32):
        work = work_of("ring_attention", length=16384, devices=devices, **base)
        parts = parts_of(work, hw, "cold")
        if bound_at is None and float(parts["peer"]) > float(parts["compute"]):
            bound_at = devices
    one = work_of("ring_attention", length=65536, devices=4, **base)
    other = work_of("ring_attention", length=65536, devices=4, variant="pass_q", **base)
    sent, back = float(np.max(one.links["peer"])), float(np.max(other.links["peer"]))
    return [
        Property("a ring becomes bound by its link", bound_at is not None,
                 f"16K tokens, 32 heads, A10 over PCIe: from {bound_at} devices on"),
        Property("passing queries and outputs both ways loads a direction less", back / 2 < sent,
                 f"{sent / 1e9:.3g} GB one way of keys and values; {back / 1e9:.3g} GB of queries "
                 "and outputs, half in each direction"),
    ]  # fmt: skip
