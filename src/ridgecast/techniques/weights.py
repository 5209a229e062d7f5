"""Techniques of stored weights: fewer bits, sparsity, codes, factors; kernels that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Storage, Treatment

# Lane operations to make a 16-bit weight of a packed code: shift and mask, then scale (Marlin,
# arXiv:2408.11743, section 3); a zero point is one more. All codes of b <= 4 bits share it.
_UNPACK = 2.0
_ZERO = 1.0
# Operations to decode one weight of a code of variable length: look-ups in tables of 8 bits, shifts
# of the bit buffer, position of the output (assumed, as ops.low_bit: 16)
_DECODE = 16.0
_NO_PRODUCTS = 1e-9  # none are done on the matrix unit


def _stored(t: Treatment, storage: Storage) -> Treatment:
    """Linear layers and experts stored alike."""
    return replace(t, weights=storage, experts=storage)


def _marlin(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """4 bits with an fp16 scale a group of 128, unpacked in registers (shift-mask and scale)."""
    return _stored(t, Storage(v["bits"], int(v["group"]), 16, unpack=_UNPACK))


def _gptq(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Asymmetric codes; a scale and a zero point a row (group 0), or a group of a row."""
    stored = Storage(v["bits"], int(v["group"]), 16, v["bits"], unpack=v["unpack"])
    return _stored(t, stored)


def _gptq_eager(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Weights become 16-bit matrices in memory before every product."""
    unpack = 4.0 + _UNPACK + _ZERO  # codes across words: two loads, two shifts, or, mask
    stored = Storage(v["bits"], int(v["group"]), 16, v["bits"], unpack=unpack, rebuild=True)
    return replace(_stored(t, stored), launches=t.launches * v["kernels"])


def _finequant(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Codes with an fp16 scale a group that is as fine as the matrix needs."""
    return _stored(t, Storage(v["bits"], int(v["group"]), 16, unpack=_UNPACK))


def _smoothquant_plus(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """4 bits; an fp16 scale and a 4-bit zero point a group."""
    stored = Storage(v["bits"], int(v["group"]), 16, v["bits"], unpack=_UNPACK + _ZERO)
    return _stored(t, stored)


def _spqr(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Bits + scales and zeros, themselves of few bits with fp16 scale and zero each second group.

    bits + (scale + zero) / group + 64 / (group second) + 32 outliers, as in the source.
    """
    group, second = int(v["group"]), v["second"]
    side = v["scale_bits"] + 32.0 / second
    # the statistics of the second level are unpacked too, once a group: below an operation
    stored = Storage(v["bits"], group, side, side, outliers=v["outliers"], outlier_bits=32.0,
                     unpack=_UNPACK + _ZERO)  # fmt: skip
    return _stored(t, stored)


def _dfloat11(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Exponents by a Huffman code, signs and mantissas as they are: rebuilt a block at a time."""
    stored = Storage(v["bits"], unpack=v["decode"], rebuild=True)
    return replace(_stored(t, stored), ends=stored)


def _lut_gemm(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Look up sums of 8 activations by 8 bits of a plane: a load and an addition, every row."""
    stored = Storage(v["bits"], int(v["group"]), 16.0 * v["bits"], unpack=2.0 * v["bits"] / 8.0,
                     rows=1, products=_NO_PRODUCTS)  # fmt: skip
    return _stored(t, stored)


def _qserve(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Weights 4, activations 8, cache 4 bits.

    Weights: 8-bit scale and 4-bit zero point a group of 128 (fp16 scales of columns do not count);
    widened to int8 four at a time, so half an operation each for shift and mask, scale and zero.
    Cache: an fp16 scale and zero point a head and token.
    """
    stored = Storage(v["bits"], int(v["group"]), 8, 4, compute="int8", unpack=v["unpack"])
    cache = Storage(v["kv_bits"], int(v["kv_group"]), 16, 16, unpack=_UNPACK + _ZERO)
    return replace(_stored(t, stored), activations="int8", kv=replace(t.kv, storage=cache))


def _dgq(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """4-bit weights in fine groups, widened to int8 of coarse scales, multiplied in int8."""
    stored = Storage(v["bits"], int(v["group"]), 8, 4, compute="int8", unpack=v["unpack"])
    return replace(_stored(t, stored), activations="int8")


def _comet(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """4-bit weights and cache; products in int4, those of a share of the depth in int8.

    int8 runs at half the rate of int4, so that share counts twice; its weights are widened.
    """
    stored = Storage(v["bits"], int(v["group"]), 16, compute="int4", unpack=v["eight"],
                     products=1.0 + v["eight"])  # fmt: skip
    cache = Storage(4, 128, 16, 16, unpack=_UNPACK + _ZERO)
    return replace(_stored(t, stored), activations="int4", kv=replace(t.kv, storage=cache))


def _flash_llm(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Non-zeros with a 16-bit position each are loaded, zeros filled in on chip; dense products."""
    stored = Storage(16, density=1.0 - v["zeros"], index_bits=16, unpack=_UNPACK)
    return _stored(t, stored)


def _gqsa(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Keep or drop groups of 16 weights; those kept have 4 bits, scale, zero and position."""
    side = (16.0 + 4.0 + 16.0) / v["group"]
    stored = Storage(v["bits"], density=1.0 - v["zeros"], index_bits=side, unpack=_UNPACK + _ZERO)
    return _stored(t, stored)


def _efficientqat(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Codes with an fp16 scale and a zero point of as many bits a group."""
    stored = Storage(v["bits"], int(v["group"]), 16, v["bits"], unpack=_UNPACK + _ZERO)
    return _stored(t, stored)


def _fast_2bit(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """2 bits in groups of 16, a share of the groups at 4; scales of 4 bits, second level fp16."""
    bits = 2.0 + 2.0 * v["wide"]
    stored = Storage(bits, int(v["group"]), 4, bits, outliers=v["outliers"], outlier_bits=32.0,
                     unpack=_UNPACK + _ZERO)  # fmt: skip
    return _stored(t, stored)


def _qmoe(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Ternary experts behind a dictionary code of fixed words: `decode` operations a weight."""
    return replace(t, experts=Storage(v["bits"], unpack=v["decode"]))


def _minima(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Factors instead of matrices: a share of the weights, and of the products, stays.

    Two or three thin products take the place of one: so many launches.
    """
    stored = Storage(16, density=v["kept"], products=v["kept"])
    return replace(_stored(t, stored), launches=t.launches * v["factors"])


_GROUP = Parameter(128, 16, 8192, "weights that share a scale")
_BITS = Parameter(4, 2, 8, "bits a weight")
_LINEAR = ("weights", "experts")

TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique(
            "marlin",
            "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models",
            "4-bit weights, 16-bit products; memory-bound up to a few dozen rows",
            "Frantar et al. 2024, arXiv:2408.11743",
            _marlin,
            _LINEAR,
            {"bits": _BITS, "group": _GROUP},
        ),
        Technique(
            "gptq",
            "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
            "weights at 3 or 4 bits, 16-bit products, unpacked in the kernel of the product",
            "Frantar et al. 2022, arXiv:2210.17323",
            _gptq,
            _LINEAR,
            {
                "bits": _BITS,
                "group": Parameter(0, 0, 8192, "weights that share a scale; 0: all of a row"),
                "unpack": Parameter(
                    4,
                    1,
                    16,
                    "lane operations a weight; 8: shift and mask (half rate), scale and "
                    "zero, product on the lanes",
                ),
            },
        ),
        Technique(
            "gptq-eager",
            "GPTQ weights without a fused kernel: unpacked to memory, then multiplied",
            "weights at 4 bits at rest; every pass writes and reads a 16-bit copy of each matrix",
            "Frantar et al. 2022, arXiv:2210.17323; the path without a fused kernel",
            _gptq_eager,
            _LINEAR,
            {
                "bits": _BITS,
                "group": _GROUP,
                "kernels": Parameter(1.5, 1, 8, "kernels launched, times those of 16 bits"),
            },
        ),
        Technique(
            "finequant",
            "FineQuant: Unlocking Efficiency with Fine-Grained Weight-Only Quantization for LLMs",
            "4- or 8-bit weights with scales as fine as a matrix needs; 16-bit products",
            "Kim et al. 2023, arXiv:2308.09723",
            _finequant,
            _LINEAR,
            {"bits": _BITS, "group": Parameter(64, 16, 8192, "weights that share a scale")},
        ),
        Technique(
            "smoothquant-plus",
            "SmoothQuant+: Accurate and Efficient 4-bit Post-Training Weight Quantization for LLM",
            "4-bit weights in groups after smoothing: one device holds what took two",
            "Pan et al. 2023, arXiv:2312.03788",
            _smoothquant_plus,
            _LINEAR,
            {"bits": _BITS, "group": _GROUP},
        ),
        Technique(
            "spqr",
            "SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression",
            "3-bit weights in groups of 16, statistics quantised, outliers sparse in 16 bits",
            "Dettmers et al. 2023, arXiv:2306.03078",
            _spqr,
            _LINEAR,
            {
                "bits": Parameter(3, 2, 8, "bits a weight"),
                "group": Parameter(16, 8, 128, "weights that share scale and zero"),
                "second": Parameter(16, 8, 128, "scales that share statistics"),
                "scale_bits": Parameter(3, 2, 8, "bits of a scale, and of a zero"),
                "outliers": Parameter(0.01, 0, 0.05, "share kept in 16 bits with 16 of index"),
            },
        ),
        Technique(
            "dfloat11",
            "70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU Inference via "
            "Dynamic-Length Float",
            "bf16 weights with entropy-coded exponents, decoded a block at a time into memory",
            "Zhang et al. 2025, arXiv:2504.11651",
            _dfloat11,
            (*_LINEAR, "ends"),
            {
                "bits": Parameter(11, 10.5, 12, "average bits a weight"),
                "decode": Parameter(_DECODE, 4, 64, "operations to decode a weight"),
            },
        ),
        Technique(
            "lut-gemm",
            "LUT-GEMM: Quantized Matrix Multiplication based on LUTs for Efficient Inference",
            "binary-coded weights index sums of 8 activations: no unpacking",
            "Park et al. 2022, arXiv:2206.09557",
            _lut_gemm,
            _LINEAR,
            {"bits": Parameter(3, 1, 8, "bit planes"), "group": _GROUP},
            needs="a few rows: every row looks up again",
        ),
        Technique(
            "qserve",
            "QServe: W4A8KV4 Quantization and System Co-design for Efficient LLM Serving",
            "4-bit weights multiplied as int8, 4-bit cache",
            "Lin et al. 2024, arXiv:2405.04532",
            _qserve,
            (*_LINEAR, "activations", "kv.storage"),
            {
                "bits": _BITS,
                "group": _GROUP,
                "kv_bits": Parameter(4, 2, 8, "bits a cached element"),
                "kv_group": Parameter(128, 16, 512, "cached elements that share a scale"),
                "unpack": Parameter(1.0, 0.25, 8, "operations to widen a weight to int8"),
            },
        ),
        Technique(
            "dgq",
            "Dual Grained Quantization: Efficient Fine-Grained Quantization for LLM",
            "4-bit weights in fine groups widened to int8, multiplied as int8",
            "Zhang et al. 2023, arXiv:2310.04836",
            _dgq,
            (*_LINEAR, "activations"),
            {
                "bits": _BITS,
                "group": _GROUP,
                "unpack": Parameter(2.0, 0.25, 8, "operations to widen a weight to int8"),
            },
        ),
        Technique(
            "comet-w4a4kv4",
            "COMET: Towards Practical W4A4KV4 LLMs Serving",
            "4-bit weights, cache and most activations; outlier channels at 8 bits",
            "Liu et al. 2024, arXiv:2410.12168",
            _comet,
            (*_LINEAR, "activations", "kv.storage"),
            {
                "bits": _BITS,
                "group": _GROUP,
                "eight": Parameter(0.2, 0, 1, "share of the depth with 8-bit activations"),
            },
            needs="a device that multiplies int4",
        ),
        Technique(
            "flash-llm",
            "Flash-LLM: Enabling Cost-Effective and Highly-Efficient Large Generative Model "
            "Inference with Unstructured Sparsity",
            "sparse weights loaded, dense tiles multiplied",
            "Xia et al. 2023, arXiv:2309.10285",
            _flash_llm,
            _LINEAR,
            {"zeros": Parameter(0.8, 0.5, 0.95, "share of weights that are zero")},
        ),
        Technique(
            "gqsa",
            "GQSA: Group Quantization and Sparsity for Accelerating Large Language Model Inference",
            "half of the groups of 16 weights dropped, the others at 4 bits",
            "Zeng et al. 2024, arXiv:2412.17560",
            _gqsa,
            _LINEAR,
            {
                "bits": _BITS,
                "zeros": Parameter(0.5, 0, 0.9, "share of groups dropped"),
                "group": Parameter(16, 8, 128, "weights of a group"),
            },
        ),
        Technique(
            "efficientqat",
            "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models",
            "2- to 4-bit weights with a scale and zero a group of 64",
            "Chen et al. 2024, arXiv:2407.11062",
            _efficientqat,
            _LINEAR,
            {
                "bits": Parameter(2, 2, 8, "bits a weight"),
                "group": Parameter(64, 16, 8192, "weights that share a scale"),
            },
        ),
        Technique(
            "fast-2bit-llm",
            "Enabling Fast 2-bit LLM on GPUs: Memory Alignment and Asynchronous Dequantization",
            "2-bit weights, groups of wide range at 4 bits, unpacking beside the loads",
            "Li et al. 2023, arXiv:2311.16442",
            _fast_2bit,
            _LINEAR,
            {
                "wide": Parameter(0.05, 0, 1, "share of groups at 4 bits"),
                "group": Parameter(16, 8, 256, "weights that share a scale"),
                "outliers": Parameter(0.01, 0, 0.05, "share kept in 16 bits with 16 of index"),
            },
        ),
        Technique(
            "qmoe",
            "QMoE: Practical Sub-1-Bit Compression of Trillion-Parameter Models",
            "experts ternary and coded below a bit, decoded inside the product",
            "Frantar and Alistarh 2023, arXiv:2310.16795",
            _qmoe,
            ("experts",),
            {
                "bits": Parameter(0.8, 0.5, 2, "average bits a weight"),
                "decode": Parameter(2.0, 0.25, 16, "operations to decode a weight"),
            },
        ),
        Technique(
            "minima",
            "A Practical Tensor-Network Compression Pipeline for Production-Scale Large Language "
            "Models",
            "matrices replaced by factors: a share of the weights and of the products is left",
            "title as given; the share that is kept is the method's own setting",
            _minima,
            _LINEAR,
            {
                "kept": Parameter(0.6, 0.05, 1, "share of the weights that is left"),
                "factors": Parameter(1.5, 1, 4, "kernels launched, times those of whole matrices"),
            },
        ),
    )
}
