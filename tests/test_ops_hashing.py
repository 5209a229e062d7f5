"""Hash tables against tables that are really filled; the hash encoding against hand counts."""

from __future__ import annotations

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.ops.hashing import HashEncoding, HashProbe

RNG = np.random.default_rng(3)


def linear_table(slots: int, keys: int) -> tuple[float, float]:
    """Mean probes of a hit and of a miss in a table that is filled."""
    used, hits = np.zeros(slots, bool), 0
    for at in RNG.integers(0, slots, keys):
        step = 0
        while used[(at + step) % slots]:
            step += 1
        used[(at + step) % slots] = True
        hits += step + 1
    free = np.flatnonzero(~used)
    ahead = np.searchsorted(free, np.arange(slots))
    nxt = np.where(ahead < len(free), free[ahead % len(free)], free[0] + slots)
    return hits / keys, float(np.mean(nxt - np.arange(slots) + 1))


@pytest.mark.parametrize(("load", "rel"), [(0.5, 0.05), (0.8, 0.1)])
def test_linear_probing_as_knuth_and_as_a_filled_table(load, rel):
    slots = 20000
    hit, miss = linear_table(slots, int(slots * load))
    op = {"queries": 1, "keys": int(slots * load), "load": load}
    assert HashProbe(**op).probes == pytest.approx(hit, rel=rel)
    assert HashProbe(**op, hit=0.0).probes == pytest.approx(miss, rel=rel)
    assert HashProbe(**op, mode="insert").probes == HashProbe(**op).probes
    both = (HashProbe(**op).probes + HashProbe(**op, hit=0.0).probes) / 2
    assert HashProbe(**op, hit=0.5).probes == pytest.approx(both)


def cuckoo_table(buckets: int, bucket: int, hashes: int, keys: int) -> tuple[float, float]:
    """Mean placements of an insertion and mean buckets that a hit reads, with random eviction."""
    homes = RNG.integers(0, buckets, (keys, hashes))
    table: list[list[tuple[int, int]]] = [[] for _ in range(buckets)]
    tries = 0
    for new in range(keys):
        key, at = new, 0
        while True:
            tries += 1
            here = table[homes[key, at]]
            if len(here) < bucket:
                here.append((key, at))
                break
            out = int(RNG.integers(bucket))
            (key, at), here[out] = here[out], (key, at)
            at = (at + 1) % hashes
    return tries / keys, float(np.mean([at + 1 for here in table for _, at in here]))


@pytest.mark.parametrize(
    ("bucket", "hashes", "load", "rel"),
    [(8, 3, 0.95, 0.05), (4, 2, 0.8, 0.05), (4, 2, 0.9, 0.15), (1, 3, 0.8, 0.2), (1, 2, 0.3, 0.1)],
)
def test_cuckoo_as_a_filled_table(bucket, hashes, load, rel):
    buckets = 12000 // bucket
    keys = int(buckets * bucket * load)
    tries, places = cuckoo_table(buckets, bucket, hashes, keys)
    op = {"queries": 1, "keys": keys, "load": load, "scheme": "cuckoo", "bucket": bucket,
          "hashes": hashes}  # fmt: skip
    assert HashProbe(**op, mode="insert").probes == pytest.approx(tries, rel=rel)
    assert HashProbe(**op).probes == pytest.approx(places, rel=0.05)


def test_bucketed_cuckoo_as_published():
    # Awad et al. 2021, arXiv:2108.07232, abstract: 1.43 an insertion, 1.39 a hit, 2.8 a miss
    op = {"queries": 1, "keys": 10**7, "load": 0.99, "scheme": "cuckoo", "bucket": 16, "hashes": 3}
    assert HashProbe(**op, mode="insert").probes == pytest.approx(1.43, rel=0.03)
    assert HashProbe(**op).probes == pytest.approx(1.39, rel=0.03)
    assert HashProbe(**op, hit=0.0).probes == pytest.approx(2.8, rel=0.03)


def test_probe_bytes_by_hand():
    # 2.5 slots of 8 B from a random multiple of 8 B: (20 + 32 - 8) / 32 sectors
    work = HashProbe(queries=1000, keys=10**6, load=0.5, hit=0.0).work()
    assert work.read == pytest.approx(1000 * (4 + 44))
    assert (work.written, work.flops["integer"]) == (4000.0, 1000 * (8 + 2 * 2.5))
    assert work.resident == 1000 * 8 + 2 * 10**6 * 8
    # a bucket of 16 slots of 8 B is one line of 128 B
    cuckoo = HashProbe(queries=1000, keys=10**6, load=0.5, scheme="cuckoo", line=128)
    assert cuckoo.work().read == pytest.approx(1000 * (4 + 128 * cuckoo.probes))
    assert cuckoo.work().steps == cuckoo.probes


def test_fuller_tables_never_cost_less():
    for scheme in ("linear", "cuckoo"):
        for mode in ("find", "insert"):
            loads = np.linspace(0.05, 0.99, 40)
            op, bad, _ = HashProbe.of_columns(
                {"queries": np.full(40, 1e6), "keys": np.full(40, 1e9), "load": loads,
                 "scheme": scheme, "mode": mode, "hit": np.full(40, 0.5)}, 40)  # fmt: skip
            assert not bad.any() and (np.diff(op.probes) >= -1e-9).all()


def test_hash_encoding_parameters():
    # 17^3 + 23^3 + 31^3 + 43^3 + 59^3 corners fit in 2^19 = 80.6^3; the other 11 levels are hashed
    dense = sum(n**3 for n in (17, 23, 31, 43, 59))
    assert HashEncoding(points=1).parameters == 2.0 * (dense + 11 * 2**19)
    # the rule of tiny-cuda-nn: ceil(scale) + 1 corners a side, entries rounded up to 8
    growth, total = (2048 / 16) ** (1 / 15), 0
    for level in range(16):
        side = int(np.ceil(16 * growth**level - 1 - 1e-9)) + 1
        total += min(-(-(side**3) // 8) * 8, 2**19)
    assert total * 2 == 12196240
    assert HashEncoding(points=1).parameters == pytest.approx(total * 2, rel=2e-4)
    assert HashEncoding(points=1, levels=1, min_resolution=9).parameters == 2.0 * 10**3


def test_hash_encoding_network_by_hand():
    op = HashEncoding(points=1000, hidden_layers=1, outputs=3)
    assert op.weights == 32 * 64 + 64 * 16  # three outputs are padded to 16
    assert op.flops == 2.0 * 1000 * op.weights
    assert HashEncoding(points=1000, hidden_layers=3, outputs=3, pad=1).weights == (
        32 * 64 + 2 * 64 * 64 + 64 * 3
    )
    back = HashEncoding(points=1000, hidden_layers=1, outputs=3, backward=True)
    assert back.flops == 2 * op.flops
    assert HashEncoding(points=1000, outputs=0).flops == 0


def test_hash_encoding_traffic_by_variant():
    points = 10**6
    # 4 pairs along x a level, of 8 B at multiples of 4 B: (8 + 32 - 4) / 32 sectors
    corners = points * 16 * 4 * 36
    fused = HashEncoding(points=points, variant="fused")
    net = fused.weights * 2
    assert fused.work().read == pytest.approx(points * 12 + corners + net)
    assert fused.work().written == points * 16 * 2
    encoded, inner = points * 32 * 2, points * 64 * 2 * 2
    mlp, layers = HashEncoding(points=points), HashEncoding(points=points, variant="layers")
    assert mlp.bytes - fused.bytes == pytest.approx(2 * encoded)
    assert layers.bytes - mlp.bytes == pytest.approx(2 * inner)
    assert [op.work().launches for op in (fused, mlp, layers)] == [1.0, 2.0, 4.0]
    cached = HashEncoding(points=points, locality=1.0, variant="fused").work()
    assert cached.read < points * 12 + net + fused.parameters * 2 + 16 * 64
    assert cached.resident == pytest.approx(points * 44 + net + fused.parameters * 2)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: HashProbe(queries=1, keys=1, load=1.0), "load"),
        (lambda: HashProbe(queries=1, keys=1, load=0.0), "load"),
        (lambda: HashProbe(queries=1, keys=1, scheme="cuckoo", bucket=1, hashes=2), "load"),
        (lambda: HashProbe(queries=2, keys=1, mode="insert"), "queries"),
        (lambda: HashProbe(queries=2, keys=1, line=256), "line"),
        (lambda: HashEncoding(points=1, max_resolution=8), "max_resolution"),
        (lambda: HashEncoding(points=1, dims=1), "dims"),
    ],
)
def test_bad_input_names_the_field(make, field):
    with pytest.raises(SpecError, match=rf"\.{field}: got"):
        make()
