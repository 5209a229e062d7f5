"""Low-bit and sparse GEMM: counts by hand, kernels written out and counted, published checks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.ops.base import resident_of
from ridgecast.ops.gemm import Gemm
from ridgecast.ops.low_bit import LowBitGemm
from ridgecast.ops.sparse import SparseGemm
from ridgecast.testing import check_op

# NVIDIA A10 data sheet: 600 GB/s, 125 TFLOP/s bf16, 31.2 TFLOP/s fp32; A100: 1248 TOP/s int4,
# 19.5 TFLOP/s fp32
A10 = {"memory": 600e9, "bf16": 125e12, "vector": 31.2e12, "integer": 15.6e12}


def bound(work, rates=A10):
    units = [count / rates[unit] for unit, count in work.flops.items()]
    return max(work.moved / rates["memory"], *units)


def dense(m, n, k):
    g = Gemm(m, n, k)
    return max(g.bytes / A10["memory"], g.flops / A10["bf16"])


@pytest.mark.parametrize("name", ["low_bit_gemm", "sparse_gemm"])
def test_conformance(name):
    check_op(name)


def test_dequant_bytes_and_operations_by_hand():
    op = LowBitGemm(m=200, n=64, k=256, weight_bits=4, group=128, zero_bits=4, outliers=0.25)
    codes, sides = 64 * 256 / 2, 64 * 2 * (16 + 4) / 8
    kept, starts = 64 * 256 / 4 * 4, 65 * 4
    assert op.weight_bytes == codes + sides + kept + starts
    work = op.work()
    assert work.read == op.weight_bytes + 200 * 256 * 2 and work.written == 200 * 64 * 2
    converted = 64 * 256 * 2  # 200 rows are two blocks of 128
    assert work.flops == {
        "bf16": 2.0 * 200 * 64 * 256, "integer": converted,
        "vector": 2.0 * converted + 2.0 * 200 * 64 * 256 / 4,
    }  # fmt: skip


def test_fractional_bits_and_short_groups():
    assert LowBitGemm(m=1, n=8, k=256, weight_bits=2.5, group=0).weight_bytes == 8 * (80 + 2)
    assert LowBitGemm(m=1, n=8, k=200, weight_bits=4, group=128).weight_bytes == 8 * (100 + 2 * 2)


def test_lut_counts_are_those_of_a_kernel_written_out():
    """Signs of binary-coded weights pick table entries; result as by hand, every step counted."""
    m, n, k, planes, mu = 2, 6, 8, 3, 4
    rng = np.random.default_rng(1)
    x, signs = rng.integers(-9, 9, (m, k)), rng.integers(0, 2, (planes, n, k))
    scale = rng.integers(1, 9, (planes, n))
    adds = looks = scaled = 0
    result = np.zeros((m, n), int)
    for row in range(m):
        tables = []
        for start in range(0, k, mu):
            table = {0: -int(x[row, start : start + mu].sum())}
            adds += 1
            for key in range(1, 2**mu):  # one sign more than an entry that is there: one add
                top = key.bit_length() - 1
                table[key] = table[key - 2**top] + 2 * int(x[row, start + top])
                adds += 1
            tables.append(table)
        for col in range(n):
            for plane in range(planes):
                total = 0
                for j, table in enumerate(tables):
                    bits = signs[plane, col, j * mu : (j + 1) * mu]
                    total += table[int(sum(int(b) << i for i, b in enumerate(bits)))]
                    looks += 1
                result[row, col] += int(scale[plane, col]) * total
                scaled += 2
    weights = (scale[:, :, None] * (2 * signs - 1)).sum(axis=0)
    assert (result == x @ weights.T).all()
    op = LowBitGemm(m=m, n=n, k=k, variant="lut", weight_bits=planes, lut_inputs=mu, group=0)
    assert op.work().flops == {"integer": 2 * looks, "vector": adds + looks + scaled}


def test_bit_serial_counts_are_those_of_a_kernel_written_out():
    m, n, k, p, q = 2, 3, 64, 2, 3
    rng = np.random.default_rng(2)
    x, w = rng.integers(0, 2**q, (m, k)), rng.integers(0, 2**p, (n, k))

    def words(row, bit):
        bits = (row >> bit) & 1
        return [int(sum(int(b) << i for i, b in enumerate(bits[s : s + 32]))) for s in (0, 32)]

    count, result = 0, np.zeros((m, n), int)
    for i in range(m):
        for j in range(n):
            for a in range(q):
                for b in range(p):
                    total = 0
                    for one, two in zip(words(x[i], a), words(w[j], b), strict=True):
                        total += (one & two).bit_count()  # and, population count, add
                        count += 3
                    result[i, j] += total << (a + b)  # shift, add
                    count += 2
    assert (result == x @ w.T).all()
    op = LowBitGemm(m=m, n=n, k=k, variant="bit_serial", weight_bits=p, act_bits=q, group=0)
    assert op.work().flops["integer"] == count


def test_marlin_near_four_times_at_small_batch_fading_past_the_ridge():
    """arXiv:2408.11743: close to 3.87 (16 over 4.125 bits) up to 16-32 rows on an A10."""
    n = k = 8192
    gains = [dense(m, n, k) / bound(LowBitGemm(m=m, n=n, k=k).work())
             for m in (1, 16, 32, 64, 128, 256, 1024, 4096)]  # fmt: skip
    assert 3.8 < gains[0] < 3.88 and gains[1] > 3.7 and gains[2] > 3.4
    assert 2.0 < gains[3] < gains[2] and gains[4] < 2.0  # "64-128: shrinking"
    assert all(a >= b - 0.01 for a, b in pairwise(gains))
    assert gains[-1] == pytest.approx(1.0, abs=0.01)


def test_conversion_that_does_not_overlap_is_slower_than_dense_at_large_m():
    work = LowBitGemm(m=8192, n=8192, k=8192).work()
    alone = work.flops["bf16"] / A10["bf16"] + work.flops["vector"] / A10["vector"]
    assert alone > 1.02 * dense(8192, 8192, 8192)
    staged = LowBitGemm(m=1, n=8192, k=8192, where="buffer").work()
    assert bound(staged) > 2.0 * dense(1, 8192, 8192)  # rebuilt in memory: slower than 16 bits
    assert staged.launches == 2.0


def test_entropy_coded_weights_save_residence_not_time():
    """DFloat11, arXiv:2504.11651: 11 bits; rebuilt in memory, about a third of bf16's speed."""
    kw = dict(m=1, n=8192, k=8192, variant="entropy_coded", weight_bits=11.2)
    rebuilt, inside = LowBitGemm(**kw).work(), LowBitGemm(**kw, where="kernel").work()
    assert rebuilt.moved / Gemm(1, 8192, 8192).bytes == pytest.approx(1 + 1 + 0.7, rel=1e-3)
    assert inside.moved / Gemm(1, 8192, 8192).bytes == pytest.approx(0.7, rel=1e-3)
    assert resident_of(rebuilt) > Gemm(1, 8192, 8192).memory_bytes > resident_of(inside)
    assert LowBitGemm(**kw).weight_bytes == 0.7 * 8192 * 8192 * 2


def test_lut_beats_dequantising_on_the_lanes_at_one_row_and_loses_at_many():
    """arXiv:2206.09557: 2.1x over a kernel that dequantises 3-bit weights; no matrix unit."""
    kw = dict(n=12288, k=12288, weight_bits=3)
    lanes = LowBitGemm(m=1, unit="lanes", scale_ops=3.0, **kw).work()
    table = LowBitGemm(m=1, variant="lut", **kw).work()
    assert "bf16" not in lanes.flops and table.all_flops < 0.5 * lanes.all_flops
    many = LowBitGemm(m=512, variant="lut", **kw).work()
    assert bound(many) > 2.0 * bound(LowBitGemm(m=512, **kw).work())


def test_codebooks_beyond_the_chip_are_gathered_at_the_price_of_dense_weights():
    """arXiv:2401.06118: 1x16 codes gain far less time there than 2x8 codes of the same bits."""
    kw = dict(m=1, n=4096, k=4096, variant="codebook", weight_bits=2, group=0)
    big, small = LowBitGemm(**kw), LowBitGemm(**kw, index_bits=8)
    assert big.weight_bytes == 4096 * 4096 / 4 + 4096 * 2 + 2**16 * 8 * 2
    assert small.weight_bytes == 4096 * 4096 / 4 + 4096 * 2 + 2 * 2**8 * 8 * 2
    assert big.work().moved > Gemm(1, 4096, 4096).bytes > 7.0 * small.work().moved
    assert big.work().footprint < 0.2 * big.work().moved
    assert small.work().flops["vector"] > big.work().flops["vector"]  # one more add a weight


def test_scaling_partial_sums_takes_as_long_as_int4_products():
    """QServe, arXiv:2405.04532: an A100's int4 unit is 64 times its lanes; groups of 128."""
    op = LowBitGemm(m=256, n=4096, k=4096, variant="mixed", dtype="int4", scales_on="sums")
    work = op.work()
    assert work.flops["int4"] == 64.0 * work.flops["vector"]
    w4a8 = LowBitGemm(m=256, n=4096, k=4096, variant="mixed", dtype="int8").work()
    assert w4a8.flops["vector"] == 4.0 * 256 * 4096  # the epilogue alone
    assert w4a8.flops["integer"] == (1 + 2) * 4096 * 4096 * 2
    w8a8 = LowBitGemm(m=256, n=4096, k=4096, variant="mixed", dtype="int8", weight_bits=8, group=0)
    assert w8a8.work().flops["integer"] == 0.0


def test_columns_equal_scalars():
    ms, bits = [1, 130, 4096], [2.0, 3.5, 8.0]
    table, bad, _ = LowBitGemm.of_columns(
        {"m": np.array(ms, float), "n": np.full(3, 512.0), "k": np.full(3, 640.0),
         "weight_bits": np.array(bits)}, 3)  # fmt: skip
    assert not bad.any()
    read = table.work().read
    for i, (m, b) in enumerate(zip(ms, bits, strict=True)):
        assert read[i] == LowBitGemm(m=m, n=512, k=640, weight_bits=b).work().read


@pytest.mark.parametrize(
    ("field", "kw"),
    [
        ("weight_bits", dict(weight_bits=11.2)),
        ("weight_bits", dict(variant="lut", weight_bits=2.5)),
        ("weight_bits", dict(variant="codebook", weight_bits=3)),
        ("weight_bits", dict(variant="mixed", dtype="int4", weight_bits=8)),
        ("dtype", dict(variant="mixed")),
        ("where", dict(variant="lut", where="buffer")),
        ("unit", dict(variant="mixed", dtype="int8", unit="lanes")),
        ("outliers", dict(outliers=1.5)),
        ("variant", dict(variant="lookup")),
    ],
)
def test_bad_low_bit(field, kw):
    with pytest.raises(SpecError, match=rf"low_bit_gemm\.{field}"):
        LowBitGemm(m=16, n=64, k=128, **kw)


# ---- sparse ----


@pytest.mark.parametrize("m", [1, 16, 256, 8192])
def test_two_of_four_is_at_most_twice_as_fast(m):
    """arXiv:2104.08378: half the operations, and 9/16 of the bytes in 16 bits."""
    n = k = 8192
    gain = dense(m, n, k) / bound(SparseGemm(m=m, n=n, k=k).work())
    assert 1.0 < gain <= 2.0
    op = SparseGemm(m=m, n=n, k=k)
    assert op.weight_bytes == n * k * 2 * 9 / 16
    assert op.work().flops == {"bf16": float(m) * n * k}


def test_block_bytes_by_counting_blocks():
    mask = np.zeros((3, 4), bool)  # 96 x 128 in blocks of 32, a quarter kept
    mask[[0, 1, 2], [1, 3, 0]] = True
    op = SparseGemm(m=8, n=96, k=128, variant="block", block=32, density=mask.mean())
    assert op.kept == mask.sum() * 32 * 32
    assert op.weight_bytes == mask.sum() * (32 * 32 * 2 + 2) + 4 * (3 + 1)
    full = SparseGemm(m=8, n=96, k=128, variant="block", block=32, density=1.0)
    assert full.weight_bytes > 96 * 128 * 2  # indices on top: slower than dense
    ragged = SparseGemm(m=8, n=100, k=128, variant="block", block=32, density=1.0)
    assert ragged.kept == 128 * 128


def test_load_as_sparse_compute_as_dense():
    """Flash-LLM, arXiv:2309.10285: 4 bytes a kept weight; 2.5x at 80 % zeros, nothing at 50 %."""
    n = k = 8192
    kw = dict(m=16, n=n, k=k, variant="unstructured")
    assert dense(16, n, k) / bound(SparseGemm(**kw, density=0.2).work()) == pytest.approx(2.5, 0.02)
    assert dense(16, n, k) / bound(SparseGemm(**kw, density=0.5).work()) < 1.0
    work = SparseGemm(**kw, density=0.2).work()
    assert work.flops["bf16"] == 2.0 * 16 * n * k  # zeros are multiplied too
    lanes = SparseGemm(**{**kw, "m": 4096}, density=0.5, compute="sparse").work()
    assert lanes.flops["vector"] == 4096.0 * n * k
    assert bound(lanes) > 1.9 * dense(4096, n, k)  # half the products, but on the lanes
    bitmap = SparseGemm(**kw, density=0.5, index="bitmap")
    assert bitmap.weight_bytes == n * k / 2 * 2 + n * k / 8 + 4 * (n + 1)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_density_outside_is_refused(density):
    with pytest.raises(SpecError, match=r"sparse_gemm\.density"):
        SparseGemm(m=1, n=64, k=64, variant="unstructured", density=density)


def test_two_of_four_needs_half_of_fours():
    with pytest.raises(SpecError, match=r"sparse_gemm\.density.*0\.5"):
        SparseGemm(m=1, n=64, k=64, density=0.4)
    with pytest.raises(SpecError, match=r"sparse_gemm\.k.*multiple of 4"):
        SparseGemm(m=1, n=64, k=66)
