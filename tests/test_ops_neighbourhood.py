"""Neighbourhood and ring attention: pairs counted one by one, and what the papers state."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.ops.attention import Attention
from ridgecast.ops.neighbourhood import NeighbourhoodAttention
from ridgecast.ops.ring import RingAttention
from ridgecast.testing import check_op


@pytest.mark.parametrize("name", ["neighbourhood_attention", "ring_attention"])
def test_conformance(name):
    check_op(name)


def seen(i, n, window, dilation=1, causal=False, stride=1):
    """Keys that query i of an axis sees: as the papers describe it, shifted inward at borders."""
    own = [j for j in range(n) if j % dilation == i % dilation]
    at = own.index(i)
    if causal:
        return set(own[max(0, at - window + 1) : at + 1])
    leader = min(at // stride * stride + stride // 2, len(own) - 1)
    start = min(max(leader - window // 2, 0), len(own) - window)
    return set(own[start : start + window])


def grid_pairs(axes):
    """Pairs of a grid, query by query: a key is seen if it is along every axis."""
    total = 0
    for query in product(*(range(n) for n, _ in axes)):
        keys = [seen(i, n, **kw) for i, (n, kw) in zip(query, axes, strict=True)]
        grid = product(*(range(n) for n, _ in axes))
        total += sum(all(k in s for k, s in zip(key, keys, strict=True)) for key in grid)
    return total


NAMES = ("depth", "height", "width")


@pytest.mark.parametrize(
    "axes",
    [
        [(11, dict(window=4))],
        [(13, dict(window=4, dilation=3))],
        [(13, dict(window=4, dilation=3, causal=True))],
        [(12, dict(window=5, stride=3))],
        [(7, dict(window=3)), (9, dict(window=5))],
        [(7, dict(window=3, dilation=2, causal=True)), (6, dict(window=2))],
        [(4, dict(window=3)), (5, dict(window=2, dilation=2)), (3, dict(window=3))],
        [(4, dict(window=3, causal=True)), (5, dict(window=2)), (3, dict(window=2))],
    ],
)
def test_pairs_are_those_counted_one_by_one(axes):
    fields = {}
    for name, (n, kw) in zip(NAMES[-len(axes) :], axes, strict=True):
        ending = "" if name == "width" else f"_{name}"
        fields |= {name: n, f"window{ending}": kw["window"]}
        fields[f"dilation{ending}"] = kw.get("dilation", 1)
    causal = "outer" if axes[0][1].get("causal") else "no"
    op = NeighbourhoodAttention(
        heads=2, head_dim=8, causal=causal, stride=axes[0][1].get("stride", 1), **fields
    )
    assert op.pairs == grid_pairs(axes)
    if causal == "no":  # every query has the same number of keys
        assert op.pairs == op.tokens * np.prod([kw["window"] for _, kw in axes])
    assert op.work().flops["bf16"] == 2 * 2 * 8 * 2 * op.pairs


def test_causal_along_all_axes():
    axes = [(6, dict(window=3, causal=True)), (5, dict(window=4, causal=True))]
    op = NeighbourhoodAttention(
        width=5, height=6, window=4, window_height=3, heads=1, causal="all"
    )  # fmt: skip
    assert op.pairs == grid_pairs(axes)


@pytest.mark.parametrize(("n", "window", "tile", "stride"), [(40, 9, 4, 1), (40, 8, 4, 4),
                                                           (37, 11, 8, 3)])  # fmt: skip
def test_tiles_hold_the_union_of_their_windows(n, window, tile, stride):
    """Computed pairs: at least those of the visited keys, more only at borders."""
    visited = 0
    for start in range(0, n, tile):
        rows = range(start, min(start + tile, n))
        keys = set().union(*(seen(i, n, window, stride=stride) for i in rows))
        visited += tile * -(-len(keys) // tile) * tile
    op = NeighbourhoodAttention(width=n, window=window, heads=1, tile=tile, stride=stride)
    assert op.pairs <= visited <= op.computed
    borders = 2 * -(-window // tile) * tile * tile  # tiles whose union is cut: a key tile less
    assert op.computed - visited <= borders


def test_strides_make_tiles_waste_nothing():
    """arXiv:2504.16922: stride = tile and windows of whole tiles are perfectly block-sparse."""
    kw = dict(width=64, height=64, window=16, heads=1, tile=8)
    plain, strided = NeighbourhoodAttention(**kw), NeighbourhoodAttention(**kw, stride=8)
    assert strided.computed == strided.pairs == plain.pairs
    assert plain.computed == (3 / 2) ** 2 * plain.pairs  # 16 + 7 keys a side need three tiles


def test_a_window_over_everything_is_attention():
    op = NeighbourhoodAttention(width=256, window=256, heads=4, head_dim=64, batch=2).work()
    full = Attention(
        q_len=256, kv_len=256, q_heads=4, head_dim=64, batch=2, causal=False
    ).work()  # fmt: skip
    assert op.flops == full.flops and op.moved == full.moved
    causal = NeighbourhoodAttention(width=256, window=100, heads=4, head_dim=64, causal="outer")
    window = Attention(q_len=256, kv_len=256, q_heads=4, head_dim=64, window=100)
    assert causal.flops == window.flops


def test_naive_kernels_write_scores_and_use_no_matrix_unit():
    """arXiv:2204.07143, stage 1 of NAT-Tiny: 56 x 56, window 7, two heads of 32."""
    kw = dict(width=56, height=56, window=7, heads=2, head_dim=32, dtype="fp16")
    naive, fused = (NeighbourhoodAttention(**kw, variant=v).work() for v in ("naive", "fused"))
    scores = 2 * 2 * 56 * 56 * 49
    assert naive.moved - fused.moved == 4 * scores
    assert "fp16" not in naive.flops and naive.launches == 3
    assert fused.flops["fp16"] == 2 * 56 * 56 * 49 * 64 * 2  # 2 h w k^2 channels, twice


@pytest.mark.parametrize(
    ("field", "kw"),
    [
        ("window", dict(window=9)),
        ("window", dict(window=3, dilation=3)),
        ("window_height", dict(window=3, height=2)),
        ("heads", dict(window=3, kv_heads=3)),
        ("stride", dict(window=3, stride=4)),
        ("stride", dict(window=3, stride=2, causal="all")),
        ("tile", dict(window=3, tile=2, variant="naive")),
    ],
)
def test_bad_neighbourhood(field, kw):
    with pytest.raises(SpecError, match=rf"neighbourhood_attention\.{field}"):
        NeighbourhoodAttention(**{"width": 8, "heads": 4, **kw})


# ---- ring ----


def owners(layout, length, devices):
    tokens = np.arange(length)
    if layout == "striped":
        return tokens % devices
    if layout == "zigzag":
        chunk = tokens // (length // (2 * devices))
        return np.minimum(chunk, 2 * devices - 1 - chunk)
    return tokens // (length // devices)


@pytest.mark.parametrize("layout", ["contiguous", "striped", "zigzag"])
@pytest.mark.parametrize(("causal", "cached"), [(True, 0), (True, 16), (False, 0)])
def test_rounds_of_the_ring_counted_pair_by_pair(layout, causal, cached):
    """Devices go round by round, each round as long as its busiest device."""
    length, devices, heads, dim = 48, 4, 2, 8
    owner = owners(layout, length, devices)
    total = sum_all = 0
    for hop in range(devices):
        pairs = []
        for device in range(devices):
            mine = np.flatnonzero(owner == device)
            theirs = np.flatnonzero(owner == (device - hop) % devices)
            new = sum(1 for q in mine for k in theirs if k <= q or not causal)
            pairs.append(new + len(mine) * cached // devices)
        total, sum_all = total + max(pairs), sum_all + sum(pairs)
    assert sum_all == length * cached + (length * (length + 1) // 2 if causal else length**2)
    op = RingAttention(
        length=length, devices=devices, heads=heads, head_dim=dim, causal=causal, layout=layout,
        cached=cached,
    )  # fmt: skip
    assert op.flops == 4 * heads * dim * total
    assert op.flops * devices >= 4 * heads * dim * sum_all


def test_striping_nearly_halves_causal_work():
    """arXiv:2311.09431: a contiguous ring's last device works as if nothing were masked."""
    kw = dict(length=262144, devices=64, heads=1, head_dim=64)
    full = RingAttention(**kw, causal=False).flops
    contiguous, striped, zigzag = (
        RingAttention(**kw, layout=layout).flops for layout in ("contiguous", "striped", "zigzag")
    )
    assert 0.98 < contiguous / full < 1.0
    assert striped / full == pytest.approx(0.5, rel=1e-3)
    assert zigzag <= striped


def test_ring_memory_and_overlap_as_in_the_paper():
    """arXiv:2310.01889: 6 b c h elements held; blocks of c >= FLOPS / bandwidth hide sending."""
    b, c, n, d = 2, 4096, 32, 128
    op = RingAttention(length=8 * c, devices=8, heads=n, head_dim=d, batch=b, causal=False)
    work = op.work()
    sums = 4 * b * c * n * (d + 1)  # ours: fp32 outputs so far and their log-sum-exp
    assert work.resident == 6 * b * c * n * d * 2 + sums
    assert work.links == {"peer": 7 * 2 * b * c * n * d * 2} and work.hops == {"peer": 7}
    each_round, sent = work.flops["bf16"] / 8, work.links["peer"] / 7
    assert each_round / sent == c  # 4 d c^2 operations over 4 c d bytes a head


def test_one_device_is_flash_attention():
    op = RingAttention(length=1024, devices=1, heads=8, head_dim=64).work()
    flash = Attention(q_len=1024, kv_len=1024, q_heads=8, head_dim=64).work()
    assert op.flops == flash.flops and op.moved == flash.moved and op.launches == 1
    assert op.links == {"peer": 0.0} and op.hops == {"peer": 0.0}


def test_passing_queries_pays_where_few_meet_many():
    kw = dict(devices=8, heads=32, kv_heads=8, head_dim=128)

    def sent(**more):
        return [RingAttention(**kw, **more, variant=v).work().links["peer"]
                for v in ("pass_kv", "pass_q")]  # fmt: skip

    keys, queries = sent(length=128, cached=131072)
    assert queries < 0.05 * keys
    keys, queries = sent(length=131072)
    assert queries > 4 * keys


def test_ring_columns_equal_scalars():
    devices, lengths = [1, 2, 8], [4096, 8192, 131072]
    for layout in ("contiguous", "striped", "zigzag"):
        columns = {"devices": np.array(devices, float), "length": np.array(lengths, float),
                   "heads": np.full(3, 8.0), "layout": layout}  # fmt: skip
        table, bad, _ = RingAttention.of_columns(columns, 3)
        assert not bad.any()
        for row, (p, n) in enumerate(zip(devices, lengths, strict=True)):
            one = RingAttention(length=n, devices=p, heads=8, layout=layout).work()
            assert table.work().flops["bf16"][row] == one.flops["bf16"]
            assert table.work().links["peer"][row] == one.links["peer"]


@pytest.mark.parametrize(
    ("field", "kw"),
    [
        ("length", dict(length=1000, devices=3)),
        ("length", dict(length=12, devices=4, layout="zigzag")),
        ("cached", dict(length=16, devices=4, cached=2)),
        ("heads", dict(length=16, devices=4, kv_heads=3)),
        ("link", dict(length=16, devices=4, link="wifi")),
    ],
)
def test_bad_ring(field, kw):
    with pytest.raises(SpecError, match=rf"ring_attention\.{field}"):
        RingAttention(heads=8, **kw)
