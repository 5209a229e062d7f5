"""Engines' own collectives inside a pass: which are taken, and their measured times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgecast.hardware import get as device
from ridgecast.models import Layout, get
from ridgecast.models.network import Tokens
from ridgecast.predict.bundle import open_bundle
from ridgecast.scenario import formats_of
from ridgecast.scenario.exchange import own_exchange
from ridgecast.scenario.lower import time_calls
from ridgecast.scenario.rows import Case


def test_engines_exchange_tokens_by_their_own_kernels_where_measured():
    layout, gb200 = Layout(dp=16, ep=16, gpus_per_node=72), device("gb200")
    net = get("deepseek-v3")
    formats = formats_of(net, gb200, "nvfp4")

    def exchange(engine, tokens, lay=layout):
        calls = net.calls([Tokens(batch=lay.dp * tokens, q_len=1, kv_len=2000)], lay)
        found = own_exchange(calls, lay, (gb200, engine, formats), open_bundle())
        found = [c for c in found if c.part in ("dispatch", "combine") and np.all(c.count)]
        timed = time_calls(Case(found, gb200, formats, engine=engine))
        return found, timed.time[:, 0] / timed.count[:, 0]

    calls, time = exchange("trtllm", 256)
    assert [c.fields["kind"] for c in calls] == ["all_to_all"] * 2
    assert time == pytest.approx([30.2e-6, 63.7e-6], rel=0.05)  # of its table
    low = [c.fields["collection"] for c in exchange("sglang", 64)[0]]
    many = [c.fields["collection"] for c in exchange("sglang", 4096)[0]]
    assert all(c.endswith("-ll") for c in low) and all(c.endswith("-normal") for c in many)
    for engine, other in (("vllm", layout), ("trtllm", replace(layout, ep=8))):
        kinds = {c.fields["kind"] for c in exchange(engine, 64, other)[0]}
        assert kinds == {"all_gather", "reduce_scatter"}  # not measured; experts are cut


def test_sums_over_devices_are_the_engines_own():
    net, gb300 = get("deepseek-v3"), device("gb300")
    formats, layout = formats_of(net, gb300, "nvfp4"), Layout(tp=8, gpus_per_node=72)
    calls = net.calls([Tokens(batch=16, q_len=1, kv_len=2000)], layout)
    calls = [c for c in calls if c.fields.get("kind") == "all_reduce"]
    one = {}
    for engine in ("trtllm", "sglang", ""):
        timed = time_calls(Case(calls, gb300, formats, engine=engine))
        one[engine] = float(timed.time.sum() / timed.count.sum())
    # 229 kB over 8: its tables have 6.1 and 6.5 us about it, 29.6 and 30.9 us
    assert 5e-6 < one["trtllm"] < 7e-6 and 28e-6 < one["sglang"] < 32e-6
    asked = Case(calls, gb300, formats, engine="trtllm", collections={"collective": "nccl"})
    told = time_calls(asked)
    assert float(told.time.sum() / told.count.sum()) > 2 * one["trtllm"]
