"""Collectives against devices that really send, and published factors."""

from __future__ import annotations

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.ops import op_class

Collective = op_class("collective")


def sent_and_hops(kind, n, algorithm, size, **fields):
    work = Collective(kind=kind, bytes=size, gpus=n, algorithm=algorithm, **fields).work()
    return work.links["peer"], work.hops["peer"]


def ring(n, parts):
    """All-reduce of `parts[device][part]` around a ring; bytes sent are parts of size 1."""
    own, sent, steps = [list(p) for p in parts], [0] * n, 0
    for phase in (0, 1):
        for step in range(n - 1):
            moving = [(d, (d - step + phase) % n) for d in range(n)]
            values = [own[d][part] for d, part in moving]
            for (d, part), value in zip(moving, values, strict=True):
                to = (d + 1) % n
                own[to][part] = value if phase else own[to][part] + value
                sent[d] += 1
            steps += 1
    return own, sent, steps


def halving_doubling(n, parts):
    own, sent, steps = [list(p) for p in parts], [0] * n, 0
    span = [(0, n)] * n
    distance = n // 2
    while distance:  # halve what each is responsible for
        before = [list(p) for p in own]
        for d in range(n):
            low, high = span[d]
            middle = (low + high) // 2
            keep = (low, middle) if not d & distance else (middle, high)
            for part in range(*keep):
                own[d][part] += before[d ^ distance][part]
            sent[d] += (high - low) - (keep[1] - keep[0])
            span[d] = keep
        distance, steps = distance // 2, steps + 1
    distance = 1
    while distance < n:
        before, spans = [list(p) for p in own], list(span)
        for d in range(n):
            low, high = spans[d ^ distance]
            own[d][low:high] = before[d ^ distance][low:high]
            sent[d] += spans[d][1] - spans[d][0]
            span[d] = (min(low, spans[d][0]), max(high, spans[d][1]))
        distance, steps = distance * 2, steps + 1
    return own, sent, steps


@pytest.mark.parametrize(("simulate", "algorithm", "devices"),
                         [(ring, "ring", (2, 3, 6, 8)),
                          (halving_doubling, "halving_doubling", (2, 4, 8))])  # fmt: skip
def test_all_reduce_against_devices_that_send(simulate, algorithm, devices):
    for n in devices:
        parts = np.random.default_rng(n).integers(0, 9, (n, n))
        own, sent, steps = simulate(n, parts.tolist())
        assert all(o == parts.sum(axis=0).tolist() for o in own)
        assert sent_and_hops("all_reduce", n, algorithm, n) == (max(sent), steps)


@pytest.mark.parametrize("n", [2, 3, 6, 8, 13])
def test_bruck_all_to_all_against_devices_that_send(n):
    held = [[(d, (d + i) % n) for i in range(n)] for d in range(n)]  # rotated: i steps to go
    sent, steps, distance = 0, 0, 1
    while distance < n:
        moving = [i for i in range(n) if i & distance]
        before = [list(h) for h in held]
        for d in range(n):
            for i in moving:
                held[(d + distance) % n][i] = before[d][i]
        sent, steps, distance = sent + len(moving), steps + 1, 2 * distance
    assert all(target == d for d in range(n) for _, target in held[d])
    got = sent_and_hops("all_to_all", n, "bruck", n, gpus_per_node=n)
    assert got == pytest.approx((sent, steps))


def test_bus_factors_of_nccl_tests():
    for n in (2, 4, 8):
        at = {kind: Collective(kind=kind, bytes=1.0, gpus=n).bus_factor
              for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all",
                           "broadcast")}  # fmt: skip
        share = (n - 1) / n
        assert list(at.values()) == [2 * share, share, share, share, 1.0]


def test_one_shot_saves_messages_and_costs_bytes():
    shots = {a: sent_and_hops("all_reduce", 8, a, 800.0)
             for a in ("one_shot", "two_shot", "ring", "in_switch")}  # fmt: skip
    assert shots == {"one_shot": (5600, 1), "two_shot": (1400, 2), "ring": (1400, 14),
                     "in_switch": (900, 2)}  # fmt: skip


def test_no_all_reduce_sends_less_than_the_bound_but_in_the_switch():
    for n in (2, 4, 6, 8):
        for name, work in Collective(kind="all_reduce", bytes=1e6, gpus=n).candidates().items():
            least = 2e6 * (n - 1) / n  # Patarasuk and Yuan 2009
            assert name == "in_switch" or work.links["peer"] >= least * (1 - 1e-12)


def test_over_nodes_only_a_devices_share_crosses():
    ranks = {"gpus": 32, "gpus_per_node": 8, "kind": "all_reduce", "bytes": 3200.0}
    work = Collective(algorithm="hierarchical", **ranks).work()
    assert work.links == {"peer": 5600.0, "network": 600.0}  # 2 S 7/8; 2 S/8 3/4
    assert work.hops == {"peer": 14.0, "network": 6.0}
    flat = Collective(algorithm="ring", **ranks).work()
    assert flat.links["peer"] + flat.links["network"] == pytest.approx(2 * 3200 * 31 / 32)
    assert flat.links["network"] == pytest.approx(2 * 3200 * 31 / 32 / 8)  # eight rails
    alone = Collective(kind="all_to_all", bytes=400.0, gpus=4, gpus_per_node=1).work()
    assert alone.links == {"peer": 0.0, "network": 300.0}


def test_columns_equal_single_values_and_auto_is_the_first():
    sizes, gpus = np.array([256.0, 1e6, 1e9]), np.array([2.0, 8.0, 16.0])
    for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"):
        op, bad, _ = Collective.of_columns({"kind": kind, "bytes": sizes, "gpus": gpus}, 3)
        assert not bad.any()
        for name, work in op.candidates().items():
            for i in range(3):
                one = Collective(kind=kind, bytes=sizes[i], gpus=int(gpus[i]), algorithm=name)
                for link, sent in one.work().links.items():
                    assert np.broadcast_to(work.links[link], 3)[i] == pytest.approx(sent)
                assert np.broadcast_to(work.read, 3)[i] == pytest.approx(one.work().read)
        assert op.work().links["peer"].tolist() == op.candidates()[op.algorithms[0]].links[
            "peer"].tolist()  # fmt: skip


def test_bad_input_names_the_field():
    for fields, told in (
        ({"kind": "allreduce"}, "nearest: all_reduce"),
        ({"kind": "all_reduce", "bytes": 0.0}, r"collective\.bytes: got 0"),
        ({"kind": "all_gather", "algorithm": "tree"}, r"collective\.algorithm: .*all_gather"),
        ({"kind": "all_reduce", "gpus": 12}, r"collective\.gpus_per_node: got 8"),
        ({"kind": "all_reduce", "gpus": 1}, r"collective\.gpus: got 1"),
        ({"kind": "send_recv", "gpus": 4}, r"collective\.gpus: got 4, need 2"),
    ):
        with pytest.raises(SpecError, match=told):
            Collective(**{"bytes": 1024.0, **fields})
