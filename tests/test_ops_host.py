"""Transfers and launches by hand."""

from __future__ import annotations

import pytest

from ridgecast.errors import SpecError
from ridgecast.ops.host import Launch, Transfer


@pytest.mark.parametrize("link", ["host", "peer", "network"])
def test_pinned_transfers_send_each_byte_once(link):
    work = Transfer(payload=10**9, link=link, chunks=8).work()
    assert work.links == {link: 1e9} and work.hops == {link: 8.0}
    assert (work.read, work.written, work.resident, work.launches) == (0.0, 1e9, 1e9, 8.0)
    back = Transfer(payload=10**9, link=link, direction="from_device").work()
    assert (back.read, back.written) == (1e9, 0.0)


def test_both_ways_share_a_duplex_link_only():
    both = Transfer(payload=1000, direction="both")
    assert both.work().links == {"host": 1000.0} and both.bytes == 2000
    assert Transfer(payload=1000, direction="both", duplex=False).work().links["host"] == 2000.0


def test_pageable_memory_is_copied_once_more_unless_it_overlaps():
    sent = [Transfer(payload=1000, pinned=False, chunks=c).work().links["host"] for c in (1, 10)]
    assert sent == [2000.0, 1100.0]
    assert Transfer(payload=1000, pinned=False, link="peer").work().links["peer"] == 1000.0
    zero = Transfer(payload=1000, zero_copy=True).work()
    assert (zero.moved, zero.resident, zero.links["host"]) == (0.0, 0.0, 1000.0)


def test_graphs_trade_launches_for_steps():
    stream = Launch(kernels=300, rounds=4).work()
    graph = Launch(kernels=300, rounds=4, mode="graph", depth=100).work()
    assert (stream.launches, stream.steps) == (1200.0, 0.0)
    assert (graph.launches, graph.steps) == (4.0, 400.0)
    once = Launch(kernels=300, mode="graph", capture=True).work()
    assert once.launches > Launch(kernels=300).work().launches  # recording for one round loses


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Transfer(payload=2, chunks=3), "chunks"),
        (lambda: Transfer(payload=2, pinned=False, zero_copy=True), "zero_copy"),
        (lambda: Launch(kernels=2, depth=3), "depth"),
        (lambda: Launch(kernels=0), "kernels"),
    ],
)
def test_bad_input_names_the_field(make, field):
    with pytest.raises(SpecError, match=rf"\.{field}: got"):
        make()


def test_an_unknown_link_gets_the_nearest():
    with pytest.raises(SpecError, match=r"transfer\.link 'pear'; nearest: peer"):
        Transfer(payload=1, link="pear")
