"""Prefill and decode apart: the closed network of requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgecast.scenario.apart import Apart, Clients, balance
from ridgecast.scenario.case import Scenario

ENDS = ("time", "low", "high")
BATCHES = np.array([[64.0], [32.0], [16.0], [8.0]])


@pytest.fixture(scope="module")
def made():
    found = Scenario("meta-llama/Llama-3.1-8B", "h100_sxm").made()
    plain = replace(found.engine, decode_factor=1.0, prefill_launch=0.0)
    return replace(found, engine=plain)


def passes(prefill, step=0.001):
    """A step of `step` s a sequence, and prompts of `prefill` s."""
    one = np.array([prefill])
    return Apart(BATCHES, dict.fromkeys(ENDS, BATCHES * step), dict.fromkeys(ENDS, one),
                 dict.fromkeys(ENDS, one), np.zeros((2, 1)))  # fmt: skip


def clients(requests=64.0, slots=np.inf, decoders=1.0, groups=1.0):
    values = (requests, groups, decoders, slots, 100.0)
    return Clients(*(np.array([v]) for v in values))


def test_all_decode_where_prefill_is_fast(made):
    found = balance(passes(1e-9), clients(), "time", made)
    assert found.decoding[0] == pytest.approx(64) and found.slot[0] == pytest.approx(0, abs=1e-6)
    assert found.tpot[0] == pytest.approx(0.064)


def test_a_saturated_prefill_leaves_fewer_to_decode(made):
    # a step takes 1 ms a sequence: n of them end 10 requests a second whatever n is; prefill 8
    found = balance(passes(1 / 8.0), clients(), "time", made)
    assert found.tpot[0] < 0.064 and found.decoding[0] < 10
    # Little: requests in flight over requests a second is the time of one, all parts of it
    x = found.decoding[0] / (100 * found.tpot[0])
    whole = 100 * found.tpot[0] + found.prefill[0] + found.queue[0] + found.slot[0]
    assert x <= 8.0 and 64 / x == pytest.approx(whole)


def test_requests_beyond_the_slots_wait_for_whole_generations(made):
    found = balance(passes(1e-9), clients(slots=32.0), "time", made)
    assert found.decoding[0] == pytest.approx(32)
    assert found.slot[0] == pytest.approx(100 * 0.032)  # as long as one generation


def test_workers_that_requests_are_dealt_to_are_not_all_full(made):
    even, dealt = clients(slots=64.0).most()[0], clients(slots=8.0, decoders=8.0).most()[0]
    assert even == pytest.approx(64) and 50 < dealt < 64
    assert clients(slots=32.0, decoders=8.0).most()[0] == pytest.approx(64, rel=1e-3)
