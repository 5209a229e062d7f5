"""Prefill and decode on workers apart: which pairs of options, how many of each.

Owns the balance of both sides and what a request waits for. The options come solved.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..models import Network
from ..scenario import Traffic
from ..store.tables import Table, factorize
from ..techniques.treatment import Storage
from .pareto import non_dominated

__all__ = ["with_pairs"]

F64 = npt.NDArray[np.float64]
# Prefill workers are kept busy for 80 % of the time; a request then waits for
# busy / (2 (1 - busy)) of a prefill (M/D/1, Pollaczek-Khinchine), and for its own
_BUSY = 0.8
_WAIT = 1.0 + _BUSY / (2.0 * (1.0 - _BUSY))
# Both sides hold the same model in the same formats: one's cache is read by the other
_SHARED = ("engine", "dtype", "kv_dtype", "technique")


def with_pairs(
    found: Table, network: Network, *, traffic: Traffic, prices: Mapping[str, float], devices: int,
    tpot: float | None,
) -> Table:  # fmt: skip
    """Add disaggregated services: prefill workers of one option, decode workers of another.

    Both sides share engine, formats and techniques; device and layout may differ. A prefill worker
    runs one prompt after another (its batch-1 time to first token), a decode worker only decodes.
    Counts (x, y) up to eight each balance both sides within `devices`; prefill workers are busy for
    80 % of the time at most. The cache of a prompt crosses the network between them.
    `prices` [USD/h] by device name; `tpot` [s] is the limit of decode workers worth pairing.
    `extra_usd_per_h` is what prefill workers cost beyond as many devices of the decode side.
    """
    found = found | {"extra_usd_per_h": np.zeros(len(found["batch"]))}
    rate = found["batch"] / found["decode_s"]
    kinds, _ = factorize(
        np.array(list(map("|".join, zip(*(found[k].tolist() for k in _SHARED), strict=True))),
                 dtype=object)
    )  # fmt: skip
    good = found["status"] == "ok"
    fast = good if tpot is None else good & (found["decode_s"] <= tpot)
    parts = [found]
    for kind in np.unique(kinds[fast]).tolist():
        mine = kinds == kind
        alone = np.flatnonzero(mine & good & (found["batch"] == 1))
        first = _useful(found, alone, found["ttft_s"])
        decode = _useful(found, np.flatnonzero(mine & fast), found["decode_s"], -rate)
        for p in first.tolist():
            made = _paired(found, p, decode, network, traffic, prices, devices)
            if made is not None:
                parts.append(made)
    return {name: np.concatenate([part[name] for part in parts]) for name in found}


def _paired(
    found: Table, p: int, decode: npt.NDArray[np.int64], network: Network, traffic: Traffic,
    prices: Mapping[str, float], devices: int,
) -> Table | None:  # fmt: skip
    """Prefill workers of row `p` with decode workers of each row; None where no pair can be."""
    each = found["decode_s"][decode] * max(traffic.osl - 1, 1)
    rate_out = found["batch"][decode] / each  # requests/s of a decode worker
    wait = float(found["ttft_s"][p])
    rate_in = 1.0 / wait
    want = np.clip(np.round(rate_out / rate_in * 2.0) / 2.0, 0.125, 8.0)
    x = np.maximum(np.round(want), 1.0)
    y = np.maximum(np.round(1.0 / np.minimum(want, 1.0)), 1.0)
    size = x * found["devices_each"][p] + y * found["devices_each"][decode]
    ok = size <= devices
    rows = decode[ok]
    x, y, size, each, rate_out = (a[ok] for a in (x, y, size, each, rate_out))
    if not len(rows):
        return None
    served = np.minimum(_BUSY * x * rate_in, y * rate_out)
    kept = served / (y * rate_out)
    moved = _handover(network, found, p, traffic)
    new = {name: found[name][rows].copy() for name in found}
    new["ttft_s"] = np.full(len(rows), wait * _WAIT) + moved
    new["ttft_high_s"] = new["ttft_s"] * (found["ttft_high_s"][p] / wait)
    new["tpot_s"], new["tpot_high_s"] = new["decode_s"], new["decode_high_s"]
    new["e2e_s"] = new["ttft_s"] + each
    theirs = np.array([prices[n] for n in new["hardware"].tolist()])
    more = prices[found["hardware"][p]] - theirs
    new["extra_usd_per_h"] = x * found["devices_each"][p] * more
    new["output_tokens_per_s"] = served * traffic.osl
    new["power_w"] = x * found["power_w"][p] + y * found["power_w"][rows] * kept
    new["devices_each"] = size.astype(np.int64)
    new["batch"] = found["batch"][rows] * y
    one = f"prefill tp{found['tp'][p]}pp{found['pp'][p]} on {found['hardware'][p]}"
    pair = [f"{int(a)}x {one}, {int(b)}x decode" for a, b in zip(x, y, strict=True)]
    new["reason"] = np.array(pair, dtype=object)
    return new


def _useful(found: Table, rows: npt.NDArray[np.int64], *least: F64) -> npt.NDArray[np.int64]:
    """Rows that none of the same device beats in devices and every column of `least`."""
    kept = [rows[:0]]
    for name in dict.fromkeys(found["hardware"][rows].tolist()):
        mine = rows[found["hardware"][rows] == name]
        columns = (found["devices_each"].astype(np.float64), *least)
        kept.append(mine[non_dominated(np.stack([c[mine] for c in columns], axis=1))])
    return np.concatenate(kept)


def _handover(network: Network, found: Table, row: int, traffic: Traffic) -> float:
    """Seconds that the cache of a prompt takes to the decode side: NDR InfiniBand a device."""
    elements = sum(float(np.asarray(c.elements(traffic.isl))) for c in network.caches())
    stored = Storage.of(found["kv_dtype"][row] or "bf16").bytes_each
    return elements * stored / (50e9 * float(found["devices_each"][row]))
