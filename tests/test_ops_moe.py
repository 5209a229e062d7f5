"""Grouped products and mixtures of experts against counting, and against enumeration."""

from __future__ import annotations

from itertools import combinations, product
from math import ceil, comb

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.ops import op_class
from ridgecast.ops.loads import DISTRIBUTIONS, loads, tiles_of_binomial

GroupedGemm, Moe = op_class("grouped_gemm"), op_class("moe")
SMALL = {"num_tokens": 64, "hidden": 256, "inter": 512, "experts": 8, "top_k": 2}


# ------------------------------------------------------------------------------- loads


def test_padding_of_a_binomial_is_exact():
    for draws, chance, tile in (
        (1, 0.5, 1),
        (5, 0.3, 4),
        (64, 8 / 256, 16),
        (90, 0.9, 7),
        (9, 1, 4),
    ):
        exact = sum(comb(draws, n) * chance**n * (1 - chance) ** (draws - n) * ceil(n / tile)
                    for n in range(draws + 1))  # fmt: skip
        got = float(tiles_of_binomial(np.array(float(draws)), np.array(float(chance)), tile))
        assert got == pytest.approx(exact, rel=1e-12)


def test_uniform_choices_against_all_ways_to_choose():
    tokens, experts, top_k, tile = 3, 4, 2, 2
    ways = list(product(combinations(range(experts), top_k), repeat=tokens))
    touched = padded = 0
    for way in ways:
        rows = [sum(e in picks for picks in way) for e in range(experts)]
        touched += sum(r > 0 for r in rows)
        padded += sum(ceil(r / tile) * tile for r in rows)
    moe = Moe(num_tokens=tokens, hidden=8, inter=8, experts=experts, top_k=top_k, tile_m=tile,
              distribution="uniform")  # fmt: skip
    assert moe.touched == pytest.approx(touched / len(ways))
    assert moe.padded == pytest.approx(padded / len(ways))
    assert moe.touched == pytest.approx(experts * (1 - (1 - top_k / experts) ** tokens))
    # tokens of one of two devices, and copies that a token sends to the other
    two = Moe(num_tokens=4, hidden=8, inter=8, experts=4, top_k=2, ep=2, distribution="uniform",
              dispatch="deduplicated")  # fmt: skip
    picks = list(combinations(range(4), 2))
    here = sum(min(p) < 2 for p in picks) / len(picks)
    assert two.tokens_here == pytest.approx(4 * here)
    assert two.work().links["peer"] == pytest.approx(2 * here * 8 * (2 + 2))


def test_every_distribution_places_every_choice_once():
    for name in DISTRIBUTIONS:
        for tokens, experts, top_k in ((1, 256, 8), (64, 256, 8), (4096, 60, 4), (7, 8, 8)):
            load = loads(name, 1.2, tokens=tokens, picks=top_k, groups=experts)
            assert load.rows == pytest.approx(tokens * top_k)
            assert load.tiles(1) == pytest.approx(tokens * top_k)
            most = min(experts, tokens * top_k) + 1e-9
            assert load.touched - 1e-9 <= load.tiles(64) <= load.tiles(16) + 1e-9
            assert top_k - 1e-9 <= load.touched <= most


def test_unequal_loads_crowd_the_first_device():
    share = {name: loads(name, 1.1, tokens=4096, picks=8, groups=256, shards=8).rows
             for name in DISTRIBUTIONS}  # fmt: skip
    assert share["balanced"] == share["uniform"] == 4096
    assert share["zipf"] > 1.2 * 4096 and share["power_law"] > 1.1 * 4096
    # the quantiles of 1/x over eight experts: the first would get more than all the tokens
    first = loads("power_law", 1.01, tokens=16384, picks=2, groups=8, shards=8).rows
    assert first == pytest.approx(16384, rel=1e-4)


# ------------------------------------------------------------------------------- grouped products


def test_grouped_gemm_by_hand():
    op = GroupedGemm(m=64, groups=8, n=512, k=256)
    work = op.work()
    assert op.flops == 2 * 64 * 512 * 256
    assert work.read == 2 * (8 * 512 * 256 + 64 * 256) and work.written == 2 * 64 * 512
    counted = GroupedGemm.of_counts([3, 0, 17], tile_m=16, n=8, k=4)
    assert (counted.m, counted.touched, counted.padded) == (20, 2, 48)
    assert counted.flops == 2 * 48 * 8 * 4
    assert counted.work().read == 2 * (2 * 8 * 4 + 20 * 4)


def test_small_weights_save_bytes_and_cost_operations():
    wide = GroupedGemm(m=64, groups=8, n=512, k=256).work()
    small = GroupedGemm(m=64, groups=8, n=512, k=256, dtype="int4_wo").work()
    assert set(small.flops) == {"bf16", "vector", "integer"}
    assert small.flops["integer"] == 8 * 512 * 256 and small.flops["bf16"] == wide.flops["bf16"]
    assert small.read < wide.read and wide.flops["vector"] == 0
    again = GroupedGemm(m=8 * 640, groups=8, n=512, k=256, dtype="int4_wo").work()
    assert again.flops["integer"] == 10 * small.flops["integer"]  # once for each 64 rows


# ------------------------------------------------------------------------------- experts


def test_moe_by_hand():
    work = Moe(router=False, **SMALL).work()
    rows, cell = 128, 3 * 256 * 512
    assert work.flops["bf16"] == 2 * rows * cell
    copy = rows * 256  # elements
    gate_up, middle, out = rows * 1024, rows * 512, rows * 256
    assert work.read == 2 * (8 * cell + 2 * copy + gate_up + middle + out)
    assert work.written == 2 * (copy + gate_up + middle + out + 64 * 256)
    assert work.launches == 6
    routed = Moe(router=True, **SMALL).work()
    assert routed.flops["bf16"] - work.flops["bf16"] == 2 * 64 * 256 * 8
    plain = Moe(router=False, gated=False, **SMALL)
    assert plain.flops == 2 * rows * 2 * 256 * 512


def test_a_device_of_an_expert_parallel_group():
    whole = {**SMALL, "num_tokens": 1024, "router": False}
    one = Moe(ep=4, tp=2, **whole)
    assert one.flops == Moe(**whole).flops / 8 and one.touched == 2
    direct = Moe(ep=4, dispatch="all_to_all", **whole).work()
    # 256 tokens of 256 elements, two choices, 3 of 4 on other devices, there and back
    assert direct.links == {"peer": 256 * 2 * 0.75 * 256 * 2 * 2}
    assert direct.hops == {"peer": 2}
    once = Moe(ep=4, dispatch="deduplicated", **whole).work()
    assert once.links["peer"] < direct.links["peer"]
    far = Moe(ep=4, dispatch="all_to_all", gpus_per_node=2, **whole).work()
    assert far.links["network"] == pytest.approx(2 * far.links["peer"])
    assert Moe(ep=4, **whole).work().links == {}


def test_variants_trade_bytes_operations_and_launches():
    by = {v: Moe(variant=v, **SMALL).work()
          for v in ("grouped", "gathered", "fused", "capacity", "dense")}  # fmt: skip
    assert by["fused"].moved < by["gathered"].moved < by["grouped"].moved
    assert by["fused"].launches < by["gathered"].launches < by["grouped"].launches
    assert by["dense"].flops["bf16"] > 3.9 * by["fused"].flops["bf16"]  # 8 experts, 2 chosen
    kept = Moe(variant="capacity", capacity_factor=1.25, router=False, **SMALL)
    assert kept.padded == 8 * 20 and kept.flops == 2 * 160 * 3 * 256 * 512


def test_whole_tiles_end_padding():
    fields = {**SMALL, "router": False, "distribution": "uniform", "tile_m": 64}
    padded, rounded = Moe(**fields), Moe(rounded=True, **fields)
    assert rounded.padded == 128 and padded.padded > 500
    assert rounded.flops < padded.flops and rounded.touched == padded.touched


def test_shared_experts_and_small_weights():
    work = Moe(shared_experts=1, router=False, **SMALL).work()
    assert work.flops["bf16"] == 2 * (128 + 64) * 3 * 256 * 512
    small = Moe(dtype="bf16", weight_dtype="mxfp4", router=False, **SMALL).work()
    wide = Moe(router=False, **SMALL).work()
    assert wide.read - small.read == 8 * 3 * 256 * 512 * (2 - 4.25 / 8)
    assert small.flops["integer"] == 8 * 3 * 256 * 512
    block = Moe(dtype="fp8_block", router=False, **SMALL).work()
    assert block.launches == wide.launches + 1  # tokens are quantised first
    assert "fp8_block" in block.flops and block.flops["integer"] == 0


def test_measured_counts_replace_expectations():
    op = Moe.of_counts([5, 0, 17, 1], tile_m=8, ep=2, router=False, **SMALL)
    assert (op.rows, op.touched, op.padded) == (23, 3, 40)
    assert op.flops == 2 * 40 * 3 * 256 * 512


def test_more_work_never_costs_less():
    for name in DISTRIBUTIONS:
        last = 0.0
        for tokens in (1, 2, 16, 63, 64, 1000, 20000):
            op = Moe(**{**SMALL, "num_tokens": tokens}, distribution=name, tile_m=16)
            assert op.work().moved > last and op.touched <= 8
            assert op.memory_bytes >= 8 * 3 * 256 * 512 * 2
            last = op.work().moved


def test_columns_equal_single_values_and_bad_rows_are_told():
    columns = {
        "num_tokens": np.array([1.0, 300.0, 4096.0]), "hidden": np.array([2048.0, 4096.0, 7168.0]),
        "inter": np.array([768.0, 1536.0, 2048.0]), "experts": np.array([128.0, 64.0, 256.0]),
        "top_k": np.array([8.0, 2.0, 8.0]), "ep": np.array([1.0, 4.0, 8.0]),
        "shared_experts": np.array([0.0, 1.0, 2.0]), "tile_m": np.array([16.0, 64.0, 16.0]),
    }  # fmt: skip
    for name in DISTRIBUTIONS:
        words = {"distribution": name, "dispatch": "all_to_all", "dtype": "fp8_block"}
        op, bad, _ = Moe.of_columns({**columns, **words}, 3)
        work, counts = op.work(), op.counts()
        assert not bad.any()
        for i in range(3):
            one = Moe(**{k: int(v[i]) for k, v in columns.items()}, **words)
            for mine, single in ((work.read, one.work().read), (work.written, one.work().written),
                                 (work.matrix_flops, one.work().matrix_flops),
                                 (work.resident, one.memory_bytes),
                                 (counts["tiles16"], one.counts()["tiles16"])):  # fmt: skip
                assert np.broadcast_to(mine, 3)[i] == pytest.approx(single, rel=1e-12)
            assert np.broadcast_to(work.launches, 3)[i] == one.work().launches
    columns["top_k"] = np.array([8.0, 65.0, 8.0])
    _, bad, reason = Moe.of_columns(columns, 3)
    assert bad.tolist() == [False, True, False]
    assert reason[1] == "moe.experts: got 64, need at least top_k"


def test_bad_input_names_the_field():
    for fields, told in (
        ({"top_k": 9}, r"moe\.experts: got 8, need at least top_k"),
        ({"ep": 3}, r"moe\.ep: got 3, need a divisor of experts"),
        ({"tp": 3}, r"moe\.tp: got 3, need a divisor of inter"),
        ({"distribution": "zipfian"}, "nearest: zipf"),
        ({"exponent": -1.0}, r"moe\.exponent: got -1"),
        ({"busy": 9.0}, r"moe\.busy: got 9"),
    ):
        with pytest.raises(SpecError, match=told):
            Moe(**{**SMALL, **fields})
    with pytest.raises(SpecError, match=r"grouped_gemm\.padded_rows"):
        GroupedGemm(m=64, groups=8, n=8, k=8, padded_rows=3.0)
