"""The energy basis on a simulated device whose coefficients are known; no silicon is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgecast.errors import NoDataError, SpecError, UnsupportedError
from ridgecast.measure.base import Reading
from ridgecast.measure.energy import EnergyProtocol, energy_columns
from ridgecast.predict.power_basis import PowerBasis
from ridgecast.predict.power_basis_fit import fit_basis, repeat_floor
from ridgecast.store import select

# The simulated device: about an H200's, but made up. W, J per operation, J per byte, Hz.
TRUE = PowerBasis(
    hardware="h200_sxm", idle_power=120.0, clock_power=90.0,
    flop_energy={"bf16": 0.42e-12, "fp8_e4m3": 0.24e-12},
    byte_energy={"memory": 45e-12, "l2": 9e-12}, voltage_slope=0.55, clock=1.98e9,
    residuals=np.zeros((5, 2)),
)  # fmt: skip
RATE = {"bf16": 800e12, "fp8_e4m3": 1550e12}
LIMIT, CLOCKS = 500.0, (0.8e9, 1.98e9)
PROTOCOL = EnergyProtocol(idle_power=TRUE.idle_power)


def metered(power, rng, *, step=0.1, lag=0.12, pace=0.02, length=2.6, repeat=0.01):
    """What a board's meter says of a steady load of `power` W.

    The counter moves every `step` s at a phase that nobody knows and shows the energy of `lag` s
    ago; it is read every `pace` s, a few ms late. Temperature and supply make one window differ
    from the next by `repeat`; the instant sensor scatters by 1.5 %.
    """
    drawn = power * (1.0 + repeat * rng.standard_normal())
    t = np.arange(0.0, length, pace)
    t = t + rng.uniform(0.0, 0.004, len(t))
    shown = step * np.floor((t + rng.uniform(0.0, step)) / step)
    samples = {
        "time": t,
        "energy": drawn * (shown - lag),
        "power": drawn * (1.0 + 0.015 * rng.standard_normal(len(t))),
    }
    facts = {"energy_source": "counter", "power_sensor": "instant"}
    return Reading(length, float(np.ptp(samples["energy"])), drawn, samples=samples, facts=facts)


def campaign(rng, groups=40, per_group=8, repeats=2):
    """Rows of a campaign on the simulated device, through `energy_columns`, as a table."""
    rows = []
    pairs = rng.choice([1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288], (groups, 2))
    for n, k in pairs.tolist():
        for _ in range(per_group):
            m = int(2 ** rng.uniform(2, 13.5))
            dtype = str(rng.choice(["bf16", "fp8_e4m3"]))
            size = 2 if dtype == "bf16" else 1
            flops = 2.0 * m * n * k
            moved = {"memory": (m * k + k * n) * size + 2.0 * m * n}
            moved["l2"] = moved["memory"] + flops / rng.uniform(60, 250) * size / 2
            compute = flops / (RATE[dtype] * rng.uniform(0.5, 0.95))
            fetch = moved["memory"] / (4.3e12 * rng.uniform(0.5, 0.95))
            share = compute**4 / (compute**4 + fetch**4)
            burst = (compute**4 + fetch**4) ** 0.25 + 3e-6
            held = TRUE.capped(
                dtype, flops, moved, burst, limit=LIMIT, clock_share=share, clock_range=CLOCKS
            )
            for repeat in range(repeats):
                window = metered(float(held["power_w"]), rng)
                runs = round(2.6 / float(held["time_s"])) or 1
                row = energy_columns(window, runs, runs * float(held["time_s"]), PROTOCOL)
                rows.append({
                    **row, "hardware": "h200_sxm", "dtype": dtype, "m": m, "n": n, "k": k,
                    "batch": 1, "kernel": "library", "repeat": repeat, "time_s": burst,
                    "memory_bytes": moved["memory"], "l2_bytes": moved["l2"],
                    "clock_mean_hz": float(held["clock_hz"]), "collection": "simulated",
                    "length": 2.6,
                })  # fmt: skip
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def table():
    return campaign(np.random.default_rng(5))


@pytest.fixture(scope="module")
def basis(table):
    return fit_basis(table, seed=1)


def test_fit_recovers_the_coefficients_that_made_the_rows(table, basis):
    assert table["energy_valid"].mean() > 0.9  # windows that fail are flagged, not repaired
    assert (table["clock_mean_hz"] < 1.9e9).mean() > 0.1  # the cap was reached
    assert basis.idle_power == 120.0 and basis.card["idle_power"] == "measured"
    assert basis.clock_power == pytest.approx(TRUE.clock_power, rel=0.05)
    for name, value in TRUE.flop_energy.items():
        assert basis.flop_energy[name] == pytest.approx(value, rel=0.05)
    for name, value in TRUE.byte_energy.items():
        assert basis.byte_energy[name] == pytest.approx(value, rel=0.05)
    assert basis.voltage_slope == pytest.approx(TRUE.voltage_slope, abs=0.1)
    assert max(basis.card["spread_over_folds"].values()) < 0.25


def test_held_out_error_is_that_of_the_labels(basis):
    floor, scores = basis.card["repeat_floor"], basis.card["scores"]["unseen_shape"]
    assert floor["points"] > 200 and 0.005 < floor["mape"] < 0.02
    assert scores["rows"] > 50 and scores["mape"] <= 1.2 * floor["mape"]
    assert 0.83 <= scores["coverage"] <= 0.97 and scores["width"] < 1.1


def test_bad_windows_do_not_bend_the_fit(table, basis):
    bent = dict(table)
    bad = np.random.default_rng(0).random(len(table["energy_j"])) < 0.05
    bent["energy_j"] = np.where(bad, 1.5 * table["energy_j"], table["energy_j"])
    again = fit_basis(bent, seed=1)
    for name, value in basis.flop_energy.items():
        assert again.flop_energy[name] == pytest.approx(value, rel=0.05)


def test_what_the_rows_lack_is_fitted_or_left_out(table):
    one_clock = table["clock_mean_hz"] > 1.97e9
    rows = {k: v for k, v in select(table, one_clock).items() if k != "idle_power_w"}
    basis = fit_basis(rows, seed=1)
    assert basis.clock_power == 0.0 and basis.card["idle_power"] == "fitted"
    assert basis.idle_power == pytest.approx(TRUE.idle_power + TRUE.clock_power, rel=0.05)
    assert np.isnan(basis.clock) and basis.voltage_factor([1e9, np.nan]).tolist() == [1.0, 1.0]


def test_energy_by_hand():
    b = replace(TRUE, voltage_slope=0.5, clock=2e9)
    # phi 0.5, s = (1 - 0.25)^2 = 0.5625
    got = b.energy("bf16", 1e12, {"memory": 1e9, "l2": 2e9}, 1e-3, 1e9)
    constant = (120.0 + 90.0 * 0.5 * 0.5625) * 1e-3
    assert got == pytest.approx(constant + 0.5625 * (0.42 + 0.018) + 0.045)
    assert b.energy("bf16", 0.0, {}, 1.0) == pytest.approx(210.0)
    with pytest.raises(UnsupportedError, match="no rows of int8"):
        b.energy("int8", 1.0, {}, 1.0)
    with pytest.raises(SpecError, match="bytes at"):
        b.energy("bf16", 1.0, {"l3": 1.0}, 1.0)


def test_the_cap_stretches_only_what_the_clock_bounds():
    time = np.full(3, 1e-3)
    got = TRUE.capped(
        "bf16", [0.8e12, 1.9e12, 0.1e12], {"memory": [1e9, 1e9, 4e9]}, time,
        limit=500.0, clock_share=[1.0, 1.0, 0.0], clock_range=CLOCKS,
    )  # fmt: skip
    uncapped = TRUE.energy("bf16", [0.8e12, 1.9e12, 0.1e12], {"memory": [1e9, 1e9, 4e9]}, time)
    assert uncapped[1] > 0.5 and got["power_w"][1] == pytest.approx(500.0, rel=1e-6)
    assert got["time_s"][1] == pytest.approx(1e-3 * 1.98e9 / got["clock_hz"][1])
    assert got["time_s"][2] == 1e-3 and (got["power_w"] <= 500.0 * (1 + 1e-9)).all()
    assert got["energy_j"] == pytest.approx(got["power_w"] * got["time_s"])
    stuck = TRUE.capped("bf16", 1e12, {}, 1e-3, limit=100.0, clock_share=1.0, clock_range=CLOCKS)
    assert stuck["clock_hz"] == CLOCKS[0] and stuck["power_w"] > 100.0
    with pytest.raises(SpecError, match="limit"):
        TRUE.capped("bf16", 1.0, {}, 1.0, limit=0.0, clock_share=1.0, clock_range=CLOCKS)


def test_repeat_floor_by_hand():
    table = {
        "m": np.array([1, 1, 2, 2, 3]), "energy_j": np.array([0.99, 1.01, 2.0, 2.0, 9.0]),
    }  # fmt: skip
    # |x - mean| / mean sqrt(2): 0.01 sqrt 2 twice, 0 twice
    assert repeat_floor(table) == {
        "mape": round(0.01 * 2**0.5 / 2, 5), "spread": round(0.5 * (1.01 / 0.99 - 1), 5),
        "repeats": 4, "points": 2,
    }  # fmt: skip
    assert repeat_floor({"m": np.array([1, 2]), "energy_j": np.ones(2)}) is None


def test_cards_and_refusals(table, basis, tmp_path):
    path = tmp_path / "card.json"
    basis.save(path)
    again = PowerBasis.load(path)
    assert again.flop_energy == basis.flop_energy and again.card == basis.card
    assert again.residuals == pytest.approx(basis.residuals, abs=1e-5)
    with pytest.raises(NoDataError, match="no power basis"):
        PowerBasis.load(tmp_path / "none")
    path.write_text("{}")
    with pytest.raises(SpecError, match="schema_version"):
        PowerBasis.load(path)
    with pytest.raises(NoDataError, match="need"):
        fit_basis(select(table, np.arange(len(table["m"])) < 8), holdout=0.5)
    mixed = dict(table, hardware=np.where(np.arange(len(table["m"])) % 2, "l4", "h200_sxm"))
    with pytest.raises(SpecError, match="one device"):
        fit_basis(mixed)
    with pytest.raises(SpecError, match="energy_j"):
        fit_basis({k: v for k, v in table.items() if k != "energy_j"})
    with pytest.raises(NoDataError):
        fit_basis(dict(table, energy_valid=np.zeros(len(table["m"]), bool)))
