"""One prediction as a value: what was asked, the answer with its intervals, and its standing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OutOfDomainError, SpecError, UnsupportedError, unknown_name
from ..hardware import Hardware, resolve
from ..ops import Gemm, Op
from ..units import Bytes, Joules, Seconds, Watts, format_quantity
from .observe import told

if TYPE_CHECKING:
    from .explain import Explanation

__all__ = ["Prediction", "asked_of", "predict", "predicted_row", "row_of", "words_of"]

_QUANTITIES = {"time": "s", "power": "w", "energy": "j"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is claimed of one op on one device; SI units, None where unknown (see `reason`).

    `bound` is the speed of light [s], `limiter` what holds the time up, `basis` the rung of the
    ladder of trust.
    """

    op: Gemm | Op
    hardware: Hardware
    time: Seconds
    power: Watts | None
    energy: Joules | None
    memory: Bytes
    bound: Seconds
    limiter: str
    basis: str
    reason: str
    level: float
    intervals: Mapping[str, tuple[float, float] | None]
    config: Any = None
    model: str | None = None

    @property
    def utilisation(self) -> float:
        """Bound over time, in (0, 1]."""
        return self.bound / self.time

    def interval(self, quantity: str = "time", level: float | None = None) -> tuple[float, float]:
        """Lower and upper end of time [s], power [W] or energy [J] at a coverage.

        Raises SpecError for another quantity, OutOfDomainError where it is unknown.
        """
        if quantity not in _QUANTITIES:
            raise SpecError(unknown_name("quantity", quantity, _QUANTITIES))
        if level is not None and level != self.level:
            again = predict(
                self.op, on=self.hardware, config=self.config, model=self.model, level=level
            )
            return again.interval(quantity)
        found = self.intervals[quantity]
        if found is None:
            raise OutOfDomainError(f"{quantity} is unknown: {self.reason}")
        return found

    def explain(self, what_if: Mapping[str, str | float] | None = None) -> Explanation:
        """Where the time and the energy go; see `ridgecast.predict.explain`."""
        from .explain import explain

        return explain(
            self.op, self.hardware, config=self.config, model=self.model, what_if=what_if,
            level=self.level,
        )  # fmt: skip

    def _repr_html_(self) -> str:
        """Rich display in a notebook."""
        from ..richtext import block, line, table

        rows: list[dict[str, Any]] = []
        for name in _QUANTITIES:
            low, high = self.intervals[name] or (None, None)
            texts = (format_quantity(x, name) for x in (getattr(self, name), low, high))
            rows.append(
                {"quantity": name, **dict(zip(("value", "low", "high"), texts, strict=True))}
            )
        rows.append({"quantity": "memory", "value": format_quantity(self.memory, "bytes")})
        rows.append({"quantity": "bound", "value": format_quantity(self.bound, "time")})
        told = (
            f"{self.limiter}-limited at {100 * self.utilisation:.1f} % of the bound's rate; "
            f"the ends hold {100 * self.level:g} % of cases; {self.basis}: {self.reason}"
        )
        title = line(f"{words_of(self.op)} on {self.hardware.name}", strong=True)
        return block(title, table(rows), line(told))

    def __str__(self) -> str:
        low, high = self.interval("time")
        parts = [
            f"{format_quantity(self.time, 'time')} "
            f"({format_quantity(low, 'time')} to {format_quantity(high, 'time')}, "
            f"{100 * self.level:g} %)",
            format_quantity(self.power, "power"),
            format_quantity(self.energy, "energy"),
            f"{self.limiter}-limited",
            self.basis,
        ]
        return ", ".join(parts)


def asked_of(op: Gemm | Op) -> dict[str, Any]:
    """Columns of a table that say what is asked: the operation's fields."""
    if isinstance(op, Op):
        return {name: getattr(op, name) for name in op.infos()}
    return {"dtype": op.dtype} | {
        name: getattr(op, name) for name in ("m", "n", "k", "batch", "layout")
    }


def words_of(op: Gemm | Op) -> str:
    """Name an operation and its fields in one line.

    >>> words_of(Gemm(1, 2, 3))
    'gemm dtype=bf16 m=1 n=2 k=3 batch=1 layout=tn'
    """
    return " ".join([op.name, *(f"{k}={v}" for k, v in asked_of(op).items())])


def row_of(
    op: Gemm | Op, on: str | Path | Hardware, config: Any = None
) -> tuple[dict[str, np.ndarray], Hardware]:
    """Build a table of one row for an op, a device and an optional configuration.

    Raises SpecError for a kernel configuration of an operation that takes none.
    """
    if not isinstance(op, Gemm | Op):
        raise SpecError(f"op: got {op!r}, need an operation such as Gemm(4096, 4096, 4096)")
    if not isinstance(on, str | Path | Hardware):
        raise SpecError(f"on: got {on!r}, need a device's name, a TOML file or a Hardware")
    device = resolve(on)
    row: dict[str, Any] = {"op": op.name, "hardware": device.name} | asked_of(op)
    if isinstance(op, Op):
        if config is not None:
            raise SpecError(f"config: {op.name} takes none; its fields say how it is run")
        return _columns(row), device
    # only what differs from a plain GEMM: most tables have none of these columns
    plain = Gemm(1, 1, 1)
    rare = ("out_dtype", "b_dtype", "beta", "epilogue_bytes")
    row |= {name: getattr(op, name) for name in rare if getattr(op, name) != getattr(plain, name)}
    if op.alpha == 0.0:
        raise UnsupportedError("gemm.alpha: 0 skips the multiplication; ask for the epilogue alone")
    if config is not None:
        row["kernel"] = config.kernel
        row |= {name: column[0] for name, column in config.as_table().items()}
    return _columns(row), device


def predicted_row(
    op: Gemm | Op,
    device: Hardware,
    columns: Mapping[str, Any] | None = None,
    *,
    model: str | Path | None = None,
    level: float = 0.9,
) -> dict[str, Any]:
    """Predict one operation as a table of one row; return that row, whatever its status.

    `columns` are further ones of the table, such as kernel, tile sizes and cache.
    """
    from . import predict_table

    asked = {"op": op.name, "hardware": device.name} | asked_of(op) | dict(columns or {})
    done = predict_table(_columns(asked), model=model, level=level, hardware={device.name: device})
    return {key: column[0] for key, column in done.items()}


def _columns(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
        key: np.array([value], dtype=object if isinstance(value, str | bool) else None)
        for key, value in row.items()
    }


def predict(
    op: Gemm | Op,
    on: str | Path | Hardware,
    *,
    config: Any = None,
    model: str | Path | None = None,
    level: float = 0.9,
) -> Prediction:
    """Predict one op on one device (a name, a TOML file or a Hardware).

    `config` is a kernel configuration (`TiledConfig(tile=16)`), by default the vendor's library.
    Raises SpecError for what cannot be read and UnsupportedError where no answer can be formed.

    >>> import ridgecast as rc
    >>> p = rc.predict(rc.Gemm(4096, 4096, 4096, dtype="bf16"), on="h200_sxm")
    >>> p.bound <= p.interval("time")[0] <= p.time <= p.interval("time")[1]
    True
    """
    from .batch import predict_table

    table, device = row_of(op, on, config)
    told("predict", op, device, config)
    done = predict_table(table, model=model, level=level, hardware={device.name: device})
    row = {name: column[0] for name, column in done.items()}
    if row["status"] != "ok":
        kind = SpecError if row["status"] == "invalid" else UnsupportedError
        raise kind(str(row["reason"]))
    known = {name: _number(row[f"{name}_{unit}"]) for name, unit in _QUANTITIES.items()}
    intervals: dict[str, tuple[float, float] | None] = {}
    for name, unit in _QUANTITIES.items():
        low, high = (float(row[f"{name}_{end}_{unit}"]) for end in ("low", "high"))
        intervals[name] = None if known[name] is None else (low, high)
    return Prediction(
        op=op,
        hardware=device,
        time=float(row["time_s"]),
        power=known["power"],
        energy=known["energy"],
        memory=float(row["memory_bytes"]),
        bound=float(row["bound_s"]),
        limiter=str(row["limiter"]),
        basis=str(row["basis"]),
        reason=str(row["reason"]),
        level=level,
        intervals=intervals,
        config=config,
        model=None if model is None else str(model),
    )


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
