"""Times of CLBlast configurations on one device, also one that a what-if changed.

Owns the counterfactual: the prediction for the device as it is, times the ratio that the analytic
kernel gives, so that a better device is never slower. Knows no folder.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..hardware import Hardware, get, names
from ..kernels import clblast, problem
from ..kernels.config import ClblastConfig
from ..store.tables import Table, select
from .config_model import ConfigModel

__all__ = ["predict_configurations"]

_STRETCH = 0.5  # of the log change, added to each side of the interval (assumed, as in `ladder`)


def predict_configurations(
    model: ConfigModel, table: Table, hardware: Hardware, level: float
) -> Table:
    """Predict configurations (columns as for `ConfigModel.predict_batch`) on one device.

    A device that `what_if` made from one of the catalogue is answered as `transferred`: the
    catalogue device's time, times the analytic kernel's time on the changed device over that on
    the other. Rows with a batch are refused: none was measured. Raises what `predict_batch` raises.
    """
    rows = len(table["m"])
    base = get(hardware.base_name) if hardware.base_name in names() else hardware
    asked = {**table, "hardware": np.full(rows, base.name, dtype=object)}
    done = model.predict_batch(asked, level=level, hardware={base.name: base})
    if "batch" in table:
        _refuse_batches(done, np.asarray(table["batch"]) != 1)
    if base == hardware:
        return done
    ok = np.flatnonzero(np.asarray(done["status"]) == "ok")
    if not len(ok):
        return done
    part = select(table, ok)
    values = {
        name: part[name.lower()].astype(np.int64)
        for name in ClblastConfig.__dataclass_fields__
        if name.lower() in part
    }
    config = ClblastConfig(**values)
    p = problem(part["m"], part["n"], part["k"], dtype="fp32")
    ratio = clblast(p, config, hardware).time / clblast(p, config, base).time
    grow = np.exp(_STRETCH * np.abs(np.log(ratio)))
    floor = p.flops / hardware.rate("fp32")
    for name, factor in (
        ("time_s", ratio), ("time_low_s", ratio / grow), ("time_high_s", ratio * grow)
    ):  # fmt: skip
        done[name][ok] = np.maximum(done[name][ok] * factor, floor)
    done["bound_s"][ok] = floor
    done["basis"][ok] = "transferred"
    done["reason"][ok] = f"utilisation of {base.name} kept, physics re-predicted"
    return done


def _refuse_batches(done: Table, rows: npt.NDArray[np.bool_]) -> None:
    for name in ("time_s", "time_low_s", "time_high_s", "bound_s"):
        done[name][rows] = np.nan
    done["basis"][rows], done["status"][rows] = "", "no_answer"
    done["reason"][rows] = "no batched run of CLBlast was measured; batch must be 1"
