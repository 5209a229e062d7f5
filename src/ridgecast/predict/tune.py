"""Rank the configurations of one kernel on one shape: by time, energy or their product.

Owns `TuneResult`: the ranking, the ties and what is at stake. Candidates come from
`kernels.spaces`, every time and energy from one `predict_table` call.

Ties. Configurations predicted by one model share most of its error, so their intervals say little
about which of two is faster. A configuration is tied with the best when its predicted time is
within the median held-out error of the model: half the central 50 % interval of the best one, in
log time. For basis `analytic` nothing was held out; ANALYTIC_ERROR is what the physics showed on
configurations that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InfeasibleError, NoDataError, SpecError, UnsupportedError, unknown_name
from ..hardware import Hardware, SmLimits, resolve
from ..kernels import clblast_space, problem, simt_space, tensor_space, tiled_space
from ..kernels.clblast import clblast_plan
from ..kernels.config import ClblastConfig, SimtConfig, TensorConfig, TiledConfig
from ..kernels.occupancy import OCCUPANCY_LIMITERS, Occupancy
from ..kernels.tile import simt_plan, tensor_plan
from ..kernels.tiled import tiled_plan
from ..ops import Gemm
from ..store.tables import Table, select
from .batch import predict_table
from .bundle import open_bundle
from .prediction import words_of

__all__ = ["ANALYTIC_ERROR", "TuneResult", "tune"]

F64 = npt.NDArray[np.float64]
Row = dict[str, Any]
OBJECTIVES = ("time", "energy", "edp")
KERNELS = ("clblast", "tiled", "cutlass_simt", "cutlass_tensor")

ANALYTIC_ERROR = 0.18
"""Median |log(measured / analytic)| of configurations around their device's own median: the median
of six devices. Kind: derived, 80,028 CLBlast timings (Kernel Tuner benchmark hub, MIT) against
`kernels.clblast` (benchmarks/analytic_ranking.py)."""

ANALYTIC_LOSS = (1.17, 1.87, 4.86)
"""Measured time of the configuration that the physics ranks first over that of the best: least,
median and most of the same six devices. Kind: derived, as ANALYTIC_ERROR."""

_NUMBERS = ("time_s", "time_low_s", "time_high_s", "power_w", "energy_j", "energy_low_j",
            "energy_high_j")  # fmt: skip
_DEFAULTS = {"clblast": ClblastConfig, "tiled": TiledConfig, "cutlass_simt": SimtConfig,
             "cutlass_tensor": TensorConfig}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TuneResult:
    """Configurations of one kernel, best first; see `tune`.

    `table` holds one row a configuration: the parameters that vary, time, power and energy with
    intervals, edp, whether it is tied with the best, basis. `fixed` are parameters that every row
    shares. `stake` says what a bad choice costs, `ties` counts the rows that cannot be told from
    the best (itself included) within `tolerance` (log time), `infeasible` counts the candidates
    that do not fit by the resource that refuses them. `basis` is that of the best row.
    """

    op: Gemm
    hardware: Hardware
    kernel: str
    objective: str
    level: float
    table: Table
    fixed: Mapping[str, int]
    stake: Mapping[str, float | None]
    ties: int
    tolerance: float
    infeasible: Mapping[str, int]
    basis: str
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """Return how many configurations were ranked."""
        return len(self.table["rank"])

    @property
    def rows(self) -> list[Row]:
        """One dict a configuration, best first."""
        return self.top(len(self))

    @property
    def best(self) -> Row:
        """The first row, with the fixed parameters."""
        return {**self.top(1)[0], **self.fixed}

    def top(self, count: int) -> list[Row]:
        """Return the best `count` rows."""
        columns = {name: column[:count].tolist() for name, column in self.table.items()}
        found = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        return [{k: None if v != v else v for k, v in row.items()} for row in found]  # noqa: PLR0124

    def _repr_html_(self) -> str:
        """Rich display in a notebook."""
        from ..richtext import block, line, table

        title = (f"{len(self)} {self.kernel} configurations of {words_of(self.op)} on "
                 f"{self.hardware.name}, best {self.objective} first")  # fmt: skip
        hidden = {"edp_j_s", "energy_low_j", "energy_high_j", "basis"}
        rows = [{k: v for k, v in row.items() if k not in hidden} for row in self.top(10)]
        return block(line(title, strong=True), table(rows),
                     *(line(text) for text in self.notes))  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        asked = {name: getattr(self.op, name) for name in ("m", "n", "k", "batch", "dtype")}
        return {
            "op": self.op.name, "hardware": self.hardware.name, **asked, "kernel": self.kernel,
            "objective": self.objective, "level": self.level, "candidates": len(self),
            "basis": self.basis, "ties": self.ties, "tolerance": self.tolerance,
            "stake": dict(self.stake), "infeasible": dict(self.infeasible),
            "fixed": dict(self.fixed), "notes": list(self.notes), "rows": self.rows,
        }  # fmt: skip


def tune(
    op: Gemm,
    on: str | Path | Hardware,
    *,
    objective: str = "time",
    kernel: str | None = None,
    model: str | Path | None = None,
    level: float = 0.9,
) -> TuneResult:
    """Rank every configuration of a kernel for one op on one device.

    `kernel` is clblast (learned, fp32), tiled, cutlass_simt or cutlass_tensor (analytic); by
    default the tensor-core kernel where the format has such a unit, else the SIMT one.
    `objective` is time, energy or edp (energy x time).

    Raises SpecError for an unknown kernel or objective, UnsupportedError where the kernel or the
    device cannot run the format, InfeasibleError where no configuration fits on an SM, NoDataError
    where the model folder has no model of the kernel.

    >>> import ridgecast as rc
    >>> r = rc.tune(rc.Gemm(4096, 4096, 4096, dtype="fp32"), "rtx_4070", kernel="tiled")
    >>> r.best["rank"], len(r) <= 32, r.basis
    (1, True, 'analytic')
    """
    if objective not in OBJECTIVES:
        raise SpecError(unknown_name("objective", objective, OBJECTIVES))
    if not isinstance(op, Gemm):
        raise UnsupportedError(f"tune ranks kernels of gemm, not of {op!r}")
    device = resolve(on)
    device.rate(op.dtype)
    name = kernel or ("cutlass_tensor" if device.unit(op.dtype) == "tensor" else "cutlass_simt")
    if name not in KERNELS:
        raise SpecError(unknown_name("kernel", name, KERNELS, f"Allowed: {', '.join(KERNELS)}."))
    if name == "clblast" and op.dtype != "fp32":
        raise UnsupportedError(f"kernel clblast was measured in fp32 only, asked {op.dtype}")
    space, infeasible = _space(name, device, op.dtype)
    default = _DEFAULTS[name]()
    columns = {
        key: np.append(column, default.as_table()[key]) for key, column in space.as_table().items()
    }
    q = _Question(op, device, name, objective, model, level)
    return _rank(q, columns, _predict(q, columns, level), infeasible)


@dataclass(frozen=True, slots=True)
class _Question:
    op: Gemm
    device: Hardware
    kernel: str
    objective: str
    model: str | Path | None
    level: float


# --------------------------------------------------------------------------------------- candidates


def _space(kernel: str, device: Hardware, dtype: str) -> tuple[Any, dict[str, int]]:
    """Candidates that fit on the device, and how many do not, by the resource that refuses."""
    endless = _endless(device)
    p = problem(1, dtype=dtype)
    fit: Occupancy
    if kernel == "clblast":
        every = clblast_space(endless, dtype=dtype)
        _, fit = clblast_plan(every, device, p)
    elif kernel == "tiled":
        every = tiled_space(endless, dtype)
        _, fit = tiled_plan(every, device, p)
    elif kernel == "cutlass_simt":
        every = simt_space(endless, dtype)
        _, fit = simt_plan(every, device, p)
    else:
        every = tensor_space(endless, dtype)
        _, fit = tensor_plan(every, device, p)
    keep = fit.blocks_per_sm >= 1
    counts = np.bincount(fit.limiter_code[~keep], minlength=len(OCCUPANCY_LIMITERS))
    infeasible = {n: int(c) for n, c in zip(OCCUPANCY_LIMITERS, counts, strict=True) if c}
    if not keep.any():
        told = ", ".join(f"{n} refuses {c}" for n, c in infeasible.items())
        raise InfeasibleError(
            f"no {kernel} configuration in {dtype} fits on an SM of {device.name}: {told} of "
            f"{len(every)}; try another kernel ({', '.join(k for k in KERNELS if k != kernel)})"
        )
    return every.take(keep), infeasible


def _endless(device: Hardware) -> Hardware:
    """Give the device an SM on which everything fits, to list what does not fit on its own."""
    huge = 2**30
    limits = SmLimits(
        huge, huge, huge, huge, device.sm.warp_size, huge, huge, device.sm.register_unit,
        device.sm.shared_unit, device.sm.max_registers_per_thread,
    )  # fmt: skip
    return device.replace(sm=limits)


def _predict(q: _Question, columns: Mapping[str, Any], level: float) -> Table:
    """Predict every configuration in one batch."""
    rows = len(next(iter(columns.values())))
    op, device = q.op, q.device
    table: Table = dict(columns)
    for key, text in (("op", op.name), ("hardware", device.name), ("dtype", op.dtype),
                      ("kernel", q.kernel), ("layout", op.layout)):  # fmt: skip
        table[key] = np.full(rows, text, dtype=object)
    table |= {name: np.full(rows, getattr(op, name)) for name in ("m", "n", "k", "batch")}
    return predict_table(table, model=q.model, level=level, hardware={device.name: device})


# ------------------------------------------------------------------------------------------ ranking


def _rank(
    q: _Question, columns: Mapping[str, Any], done: Table, infeasible: dict[str, int]
) -> TuneResult:
    """Sort what was predicted; the last row is the kernel's default configuration."""
    values = _objective(done, q.objective)
    at = np.flatnonzero(np.isfinite(values[:-1]))
    if not len(at):
        reason = next((str(r) for r in done["reason"] if r), "no reason given")
        raise NoDataError(f"no {q.objective} for any {q.kernel} configuration: {reason}")
    time = np.asarray(done["time_s"], float)
    order = at[np.lexsort((at, time[at], values[at]))]
    best = order[0]
    basis, reason = str(done["basis"][best]), str(done["reason"][best])
    tolerance = _tolerance(q, {name: column[[best]] for name, column in columns.items()}, basis)
    tied = np.abs(np.log(time[order] / time[best])) <= tolerance
    varying = [name for name, column in columns.items() if len(np.unique(column[order])) > 1]
    table: Table = {"rank": np.arange(1, len(order) + 1)}
    table |= {name: columns[name][order] for name in varying}
    numbers = select({name: done[name] for name in _NUMBERS}, order)
    table |= {**numbers, "edp_j_s": numbers["energy_j"] * numbers["time_s"]}
    table |= {"tied": tied, "basis": done["basis"][order]}
    ratio = values / values[best]
    default = float(ratio[-1]) if np.isfinite(ratio[-1]) else None
    return TuneResult(
        op=q.op,
        hardware=q.device,
        kernel=q.kernel,
        objective=q.objective,
        level=q.level,
        table=table,
        fixed={n: int(c[best]) for n, c in columns.items() if n not in varying},
        stake={
            "worst_over_best": float(ratio[order[-1]]),
            "median_over_best": float(np.median(ratio[order])),
            "default_over_best": default,
        },
        ties=int(tied.sum()),
        tolerance=tolerance,
        infeasible=infeasible,
        basis=basis,
        notes=(
            _stake(ratio[order], default, q.objective),
            f"{int(tied.sum())} of {len(tied)} configurations cannot be told from the best "
            f"(within {100 * np.expm1(tolerance):.1f} % of its time)",
            *_notes(q, basis, reason, infeasible),
        ),
    )


def _objective(done: Table, objective: str) -> F64:
    time, energy = (np.asarray(done[name], float) for name in ("time_s", "energy_j"))
    return {"time": time, "energy": energy, "edp": energy * time}[objective]


def _tolerance(q: _Question, best: Mapping[str, Any], basis: str) -> float:
    """Log time within which two configurations cannot be told apart (module docstring)."""
    if basis == "analytic":
        return ANALYTIC_ERROR
    middle = _predict(q, best, 0.5)
    return float(0.5 * np.log(middle["time_high_s"][0] / middle["time_low_s"][0]))


def _stake(ratio: F64, default: float | None, objective: str) -> str:
    """Say what a bad choice costs."""
    usual = "which does not fit here" if default is None else f"x{default:.3g}"
    return (
        f"at stake in {objective}, over the best: worst x{ratio[-1]:.3g}, median "
        f"x{np.median(ratio):.3g}, the kernel's default {usual}"
    )


def _notes(q: _Question, basis: str, reason: str, infeasible: dict[str, int]) -> list[str]:
    """Say in words what the ranking is worth."""
    notes: list[str] = []
    if basis == "analytic":
        least, middle, most = ANALYTIC_LOSS
        notes.append(
            f"physics only: where CLBlast configurations were measured, the one that physics ranks "
            f"first took {least:g} to {most:g} times the best (median {middle:g}); measure the top"
        )
    elif q.kernel == "clblast":
        notes += _held_out(q, basis, reason)
    if infeasible:
        told = ", ".join(f"{count} by {name}" for name, count in infeasible.items())
        notes.append(f"{sum(infeasible.values())} candidates do not fit on an SM: {told}")
    if q.objective != "time":
        notes.append(
            "the power model sees a configuration through its time alone, so that the order by "
            f"{q.objective} follows from that by time"
        )
    return notes


def _held_out(q: _Question, basis: str, reason: str) -> list[str]:
    """Held-out scores of the configuration model, from its card."""
    found = open_bundle(q.model).configurations()
    scores: Mapping[str, Any] = found.card.get("scores_unseen_kernel", {}) if found else {}
    if basis != "learned" or q.device.name not in scores:
        return [reason] if reason else []
    s = scores[q.device.name]
    text = (
        f"held-out kernels of {q.device.name}: median error {100 * s['median']:.1f} %, nine in ten "
        f"below {100 * s['p90']:.1f} %"
    )
    lost = s.get("pick_loss")
    return [text if lost is None else f"{text}; the pick lost {100 * lost:.1f} % to the best"]
