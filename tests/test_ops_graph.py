"""Graphs and scattered accesses against brute force; literature checks of the same family."""

from __future__ import annotations

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.ops.graph import NeighbourGather, SpGemm, SpMM
from ridgecast.ops.reuse import distinct, scattered

RNG = np.random.default_rng(7)


def lines_of(first: np.ndarray, length: int, line: int) -> list[range]:
    return [range(a // line, (a + length - 1) // line + 1) for a in first]


@pytest.mark.parametrize(
    ("cell", "span", "line"), [(4, 1, 32), (8, 2, 32), (48, 1, 32), (12, 2, 64), (200, 1, 128)]
)
def test_lines_of_random_accesses(cell, span, line):
    cells, touches = 4096, 6000
    at = RNG.integers(0, cells, touches) * cell
    hit = lines_of(at, cell * span, line)
    got = scattered(touches, cells, cell, line, span)
    assert got.touched == pytest.approx(line * sum(map(len, hit)), rel=0.02)
    assert got.unique == pytest.approx(line * len(set().union(*hit)), rel=0.06)
    every = line * sum(map(len, lines_of(np.arange(cells) * cell, cell * span, line)))
    assert scattered(cells, cells, cell, line, span).touched == pytest.approx(every, rel=1e-12)
    assert got.moved(0.0) == got.touched and got.moved(1.0) == got.unique


def test_distinct_ends():
    assert distinct(0, 5) == 0.0
    assert distinct(1, 5) == pytest.approx(1.0)
    assert distinct(3, 1) == 1.0
    assert np.allclose(distinct(np.array([0.0, 1e9]), 5.0), [0.0, 5.0])


def test_spmm_by_hand():
    # 8 values over 4 x 16 at 32 features of 4 B: rows of 128 B, four sectors each
    op = SpMM(rows=4, cols=16, nnz=8, features=32, dtype="fp32")
    work = op.work()
    assert work.flops == {"vector": 2.0 * 8 * 32}
    assert work.read == (4 + 1) * 4 + 8 * 4 + 8 * 4 + 8 * 128
    assert work.written == 4 * 128
    assert op.memory_bytes == 20 + 64 + 16 * 128 + 4 * 128
    ones = SpMM(rows=4, cols=16, nnz=8, features=32, dtype="fp32", weighted=False).work()
    assert ones.read == work.read - 8 * 4 and ones.flops["vector"] == 8 * 32


def test_spmm_fetches_each_row_once_at_best():
    op = SpMM(rows=100, cols=50, nnz=5000, features=64, locality=1.0)
    assert op.work().read == pytest.approx(101 * 4 + 5000 * 8 + 50 * 256, rel=1e-6)
    worst = SpMM(rows=100, cols=50, nnz=5000, features=64, variant="gather_scatter")
    best = SpMM(rows=100, cols=50, nnz=5000, features=64)
    assert worst.bytes > 3 * best.bytes  # messages written and read, sums read and written
    assert worst.memory_bytes > best.memory_bytes + 5000 * 256 - 1


def test_spmm_of_one_feature_pays_for_sectors():
    narrow = SpMM(rows=10**6, cols=10**6, nnz=10**7, features=1)
    assert narrow.work().read == pytest.approx(1e7 * (8 + 32) + 4e6, rel=1e-3)


def test_spgemm_against_gustavson_counted():
    m, n, k = 60, 70, 50
    a = RNG.random((m, k)) < 0.1
    b = RNG.random((k, n)) < 0.08
    products = sum(int(b[j].sum()) for i in range(m) for j in np.flatnonzero(a[i]))
    stored = int((a.astype(int) @ b.astype(int) > 0).sum())
    op = SpGemm(m=m, n=n, k=k, nnz_a=int(a.sum()), nnz_b=int(b.sum()))
    assert op.expected_products == pytest.approx(products, rel=0.05)
    assert op.expected_out_nnz == pytest.approx(stored, rel=0.05)
    assert op.work().flops["vector"] == 2.0 * op.expected_products
    full = SpGemm(m=m, n=n, k=k, nnz_a=m * k, nnz_b=k * n)
    assert (full.expected_products, full.expected_out_nnz) == (m * n * k, m * n)
    known = SpGemm(m=m, n=n, k=k, nnz_a=300, nnz_b=280, products=2500, out_nnz=1900)
    assert (known.work().flops["vector"], known.expected_out_nnz) == (5000.0, 1900.0)


def test_esc_moves_and_holds_all_products():
    shape = {"m": 10**5, "n": 10**5, "k": 10**5, "nnz_a": 10**6, "nnz_b": 10**6}
    hashed, sorted_ = SpGemm(**shape), SpGemm(**shape, variant="esc")
    assert sorted_.work().launches == 4 + 5  # 17 + 17 bits, 8 a pass
    assert sorted_.bytes > 4 * hashed.bytes
    assert sorted_.memory_bytes == pytest.approx(hashed.memory_bytes + 2 * 10**7 * 12)


def test_sampling_against_a_simulation():
    nodes, degree, seeds, fans = 3000, 12, 100, (6, 4)
    near = RNG.integers(0, nodes, (nodes, degree))
    counts = []
    for _ in range(20):
        found = set(RNG.choice(nodes, seeds, replace=False).tolist())
        front = set(found)
        for fan in fans:
            drawn = {int(x) for v in front for x in RNG.choice(near[v], fan, replace=False)}
            front = drawn - found
            found |= front
        counts.append(len(found))
    op = NeighbourGather(seeds=seeds, nodes=nodes, degree=degree, features=8,
                         fan_out_1=6, fan_out_2=4)  # fmt: skip
    assert op.gathered_nodes == pytest.approx(np.mean(counts), rel=0.03)


def test_features_over_the_host_link():
    shape = {"seeds": 1000, "nodes": 10**9, "degree": 10, "features": 25, "fan_out_1": 9}
    near = NeighbourGather(**shape)
    assert near.work().links == {}
    zero = NeighbourGather(**shape, source="host", line=128).work()
    copied = NeighbourGather(**shape, source="host", access="copy").work()
    found = near.gathered_nodes
    assert copied.links["host"] == pytest.approx(found * 100)
    # rows of 100 B at multiples of 4 B: (100 + 128 - 4) / 128 lines of 128 B on average
    assert zero.links["host"] == pytest.approx(found * 224)
    half = NeighbourGather(**shape, source="host", line=128, cached=0.5).work()
    assert half.links["host"] == pytest.approx(found * 112)
    assert NeighbourGather(**shape, source="host", cached=1.0).work().read == near.work().read


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: SpMM(rows=2, cols=2, nnz=5, features=1), "nnz"),
        (lambda: SpMM(rows=2, cols=2, nnz=4, features=1, line=48), "line"),
        (lambda: SpMM(rows=2, cols=2, nnz=4, features=1, locality=1.1), "locality"),
        (lambda: SpGemm(m=2, n=2, k=2, nnz_a=5, nnz_b=1), "nnz_a"),
        (lambda: SpGemm(m=2, n=2, k=2, nnz_a=2, nnz_b=2, products=1, out_nnz=2), "out_nnz"),
        (lambda: NeighbourGather(seeds=3, nodes=2, degree=1, features=1, fan_out_1=1), "seeds"),
    ],
)
def test_bad_input_names_the_field(make, field):
    with pytest.raises(SpecError, match=rf"\.{field}: got"):
        make()
