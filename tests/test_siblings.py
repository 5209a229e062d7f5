"""Times on unmeasured devices of a measured chip family: who answers, how well, and how surely."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ridgecast as rc
from ridgecast.accuracy.published import published_rows
from ridgecast.errors import SpecError
from ridgecast.hardware import get, names
from ridgecast.kernels.problem import problem
from ridgecast.predict.bundle import SHIPPED, open_bundle
from ridgecast.predict.device_spread import PROBABILITIES, Residuals, calibrated, scored
from ridgecast.predict.siblings import MOST, Siblings, load_siblings
from ridgecast.predict.throttle import under_another_cap
from ridgecast.predict.time_model import Shapes

CATALOG = Path(rc.__file__).parent / "hardware" / "catalog"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "silicon"
# S. Bekman, Machine Learning Engineering, maximum achievable matmul FLOPS: the best shape of a
# search, with torch, in Tflop/s; none of these was learned from
BEST = [
    ("a100_pcie", "bf16", (2048, 5120, 6144), 252.9),
    ("gh200", "bf16", (1024, 15360, 4096), 828.6),
    ("gh200", "fp8_e4m3", (1024, 14336, 14336), 1535.0),
]


def near(device, dtype="bf16"):
    return [entry.hardware for entry, _ in open_bundle().near(get(device), dtype)]


def test_siblings_share_the_chip_family_the_format_and_the_engine():
    assert near("h100_nvl") == ["h200_sxm", "h100_sxm"]  # the nearest first
    assert near("h800_sxm")[0] == "h100_sxm"
    assert near("h200_sxm", "int8_wo") == ["h100_sxm"] and near("h100_sxm", "int8_wo") == []
    assert near("h200_sxm") == ["h100_sxm"]  # never the device itself
    assert near("rtx_3090") == near("mi300x") == near("v100_sxm") == []
    engines = {e.collection.split("/")[1] for e, _ in open_bundle().near(get("gh200"), "fp8_block")}
    assert len(engines) == 1


@pytest.mark.parametrize("device", names())
def test_no_sibling_differs_by_more_than_the_limit(device):
    own = get(device)
    for name in near(device) if own.supports("bf16") else ():
        other = get(name)
        for a, b in ((own.rate("bf16"), other.rate("bf16")), (own.sm_count, other.sm_count),
                     (own.memory.bandwidth, other.memory.bandwidth),
                     (own.board_power, other.board_power)):  # fmt: skip
            assert 1 / MOST - 1e-9 <= a / b <= MOST + 1e-9


@pytest.mark.parametrize(("device", "dtype", "shape", "best"), BEST)
def test_the_best_measured_rates_of_devices_that_taught_nothing(device, dtype, shape, best):
    found = rc.predict(rc.Gemm(*shape, dtype=dtype), on=device)
    low, high = found.interval()
    work = 2 * np.prod(shape) / 1e12
    assert found.basis == "transferred" and "chip family" in found.reason
    assert work / high <= best <= work / low
    assert work / found.time == pytest.approx(best, rel=0.1)


def test_measured_devices_are_answered_by_their_own_model():
    assert rc.predict(rc.Gemm(4096, 4096, 4096, dtype="bf16"), on="h200_sxm").basis == "learned"


def test_another_16_bit_format_is_nearly_as_sure():
    """fp16 on a device that was measured in bf16: the same kernels, unit, rate and bytes."""
    known, twin = (
        rc.predict(rc.Gemm(4096, 4096, 4096, dtype=d), on="h200_sxm") for d in ("bf16", "fp16")
    )
    assert twin.time == pytest.approx(known.time) and twin.basis == "transferred"
    assert twin.interval()[1] == pytest.approx(1.1 * known.interval()[1])
    other = rc.predict(rc.Gemm(4096, 4096, 4096, dtype="fp16"), on="h100_nvl")
    assert "in bf16" in other.reason and "chip family" in other.reason


def test_scores_of_held_out_devices_hold_what_intervals_promise():
    rows, _ = published_rows(SHIPPED)
    known = [r for r in rows if r["split"] == "unseen_device (family known)"
             and r["target"] == "time" and r["bucket"] == "all"]  # fmt: skip
    assert len({(r["hardware"], r["dtype"]) for r in known}) == len(known) == 20
    assert max(r["median"] for r in known if r["dtype"] == "bf16") < 0.05
    assert np.mean([r["mape"] for r in known]) < 0.06
    assert 0.87 < np.mean([r["coverage"] for r in known]) < 0.93


def residuals(hardware, dtype, shift, rows=2000):
    rng = np.random.default_rng(ord(hardware))
    time = np.full(rows, 1e-4)
    return Residuals(hardware, dtype, rng.normal(shift, 0.05, rows), time, 0.3 * time)


def test_a_device_s_other_formats_say_nothing_of_how_devices_differ():
    """Two devices that are 20 % off to either side: each alone would promise too narrow a truth."""
    found = [residuals(h, d, s) for h, s in (("a", -0.2), ("b", 0.2)) for d in ("bf16", "fp8")]
    table = calibrated(found)
    assert table[0][0] < -0.3 and table[0][-1] > 0.3
    scores, _ = scored(found, "family")
    alone, _ = scored(found[:2], "family")  # no other device: no interval to be scored
    assert all(s["coverage"] < 0.6 for s in scores)  # b's residuals hardly hold a's
    assert all("coverage" not in s for s in alone)


@given(st.floats(350.0, 700.0), st.floats(1.0, 2.0))
def test_a_higher_cap_is_never_slower(cap, more):
    device, power = get("h100_sxm"), open_bundle().power()
    p = problem(*(np.full(3, 2.0**e) for e in (12, 12, 12)), np.ones(3), dtype="bf16")
    work, time = (p.flops, p.bytes, p.bytes), np.array([160e-6, 300e-6, 1e-3])
    lower, higher = (
        under_another_cap(power, replace(device, board_power=w), 700.0, "bf16", work, time)
        for w in (cap, cap * more)
    )
    assert (higher <= lower * (1 + 1e-12)).all()


def test_farther_than_any_measured_pair_the_interval_opens():
    models = [(open_bundle().time_model(open_bundle().entry("h100_sxm", "bf16")), 0.3)]
    shapes = Shapes(*(np.array([float(v)]) for v in (64, 64, 64, 1)))  # far above its bound
    even = Siblings(np.tile(0.4 * (PROBABILITIES - 0.5), (4, 1)), reach=0.3)
    time, low, high = even.predict(models, shapes, "bf16", get("h200_sxm"))
    far = replace(even, reach=0.1).predict(models, shapes, "bf16", get("h200_sxm"))
    assert far[0] == pytest.approx(time)
    assert far[1] == pytest.approx(low * np.exp(-0.1))
    assert far[2] == pytest.approx(high * np.exp(0.1))


def renamed(name, **values):
    text = (CATALOG / f"{name}.toml").read_text().replace(f'name = "{name}"', 'name = "mine"')
    for key, value in values.items():
        text = re.sub(rf"(?m)^{key} = .*$", f'{key} = "{value}"', text)
    return text


@pytest.mark.parametrize("device", ["a100_pcie", "h100_nvl"])
def test_a_device_file_of_the_same_numbers_answers_alike(device, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(renamed(device))
    op = rc.Gemm(4096, 4096, 4096, dtype="bf16")
    ours, theirs = (rc.predict(op, on=on) for on in (path, device))
    assert ours.time == pytest.approx(theirs.time)
    assert ours.interval() == pytest.approx(theirs.interval())


def test_a_device_may_idle_above_its_sibling_s_cap(tmp_path):
    path = tmp_path / "mine.toml"
    text = renamed("h100_sxm", board_power="1200 W")
    path.write_text(text.replace("[sources]", 'idle_power = "720 W"\n\n[sources]', 1))
    assert rc.predict(rc.Gemm(4096, 4096, 4096, dtype="bf16"), on=path).basis == "transferred"


def test_a_damaged_card_is_named(tmp_path):
    card = json.loads((SHIPPED / "siblings" / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "quantiles": [[0.0]]}))
    with pytest.raises(SpecError, match="train it again"):
        load_siblings(tmp_path)


@pytest.mark.skipif(not DATA.exists(), reason="the measured tables of ../shared/data are not here")
@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3"])
def test_intervals_of_a_vendor_that_taught_nothing_hold(dtype):
    """Intel's B60 asked of the prior of NVIDIA devices, as if nobody had measured it."""
    from ridgecast.store import import_files, select

    table = import_files([str(path) for path in (DATA / "b60" / "gemm").glob("*.parquet")])
    table = select(table, np.flatnonzero(table["dtype"] == dtype))
    shapes = Shapes(*(np.asarray(table[c], float) for c in ("m", "n", "k", "batch")))
    prior = open_bundle().prior()
    assert prior is not None and prior.vendors == {"nvidia"}
    _, low, high, reason = prior.predict(shapes, dtype, get("arc_b60"))
    held = (low <= table["time_s"]) & (table["time_s"] <= high)
    assert held.mean() > 0.85 and "intel" in reason
