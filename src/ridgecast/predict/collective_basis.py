"""Physics of collectives that their learned time stands on: columns of calls, and time terms.

    t = c0 + ring steps + tree steps + peers + bytes / link [+ bytes of all over a shared bus]

Owns the terms, their fit, and what tells one collective from another. Sources: the alpha-beta model
of Thakur, Rabenseifner, Gropp 2005 (IJHPCA 19(1), sections 3 and 4); rings and trees as NCCL counts
them (nccl, src/graph/tuning.cc: 2 (n - 1) steps of a ring all-reduce, 2 log2 n of a tree).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import RidgecastError
from ..hardware import Hardware
from ..kernels.operator import link_of
from ..ops.collective import Collective
from .sweep_features import analytic, fit_terms

__all__ = ["Calls", "Fabric", "balance", "base", "fabric_of", "fit_base", "terms"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Text = npt.NDArray[np.str_]
SWITCHED = frozenset(("nvlink", "xgmi", "xe_link"))
"""Links whose bandwidth devices do not share: over PCIe all pass the same bridges."""
_MESSAGE = 1e-6  # seconds that steps are counted in; coefficients say what one really takes
# steps that depend on the number of devices must earn their place: one count alone cannot tell
# them from a constant (0.0 to 0.03 tried on inner folds of all devices)
_COST: Mapping[str, float] = {"ring": 0.005, "tree": 0.005, "peers": 0.005}
_FIXED = ("call", "ring", "tree", "peers", "exchange")  # what is left of a call without bytes
_TRAY = 4  # devices of one host: two superchips of two GPUs each (NVIDIA GB200 NVL72 data sheet)
_HOST = 8


@dataclass(frozen=True, slots=True)
class Calls:
    """Collectives [rows]: kind, label (kind and, unless it is auto, algorithm), format, sizes.

    `bytes` is the whole buffer, `network` the seconds on links to other nodes (0 within one).
    """

    kind: Text
    label: Text
    format: Text
    bytes: F64
    gpus: F64
    nodes: F64
    network: F64

    def __len__(self) -> int:
        return len(self.bytes)

    def at(self, rows: npt.NDArray[np.bool_] | I64) -> Calls:
        """Take some of the rows."""
        return Calls(*(getattr(self, name)[rows] for name in self.__slots__))

    @property
    def exchange(self) -> npt.NDArray[np.bool_]:
        """Which are all-to-alls: everyone sends to everyone at once, in no ring."""
        return self.kind == "all_to_all"

    @property
    def reduction(self) -> npt.NDArray[np.bool_]:
        """Which add up elements, so that their format matters beside their bytes."""
        return (self.kind == "all_reduce") | (self.kind == "reduce_scatter")

    @property
    def rounds(self) -> F64:
        """Passes over the buffer: an all-reduce scatters sums and gathers them."""
        return np.where(self.kind == "all_reduce", 2.0, 1.0)


@dataclass(frozen=True, slots=True)
class Fabric:
    """What joins the devices: bandwidth of a link [B/s], whether all share it, devices of a host.

    Beyond a host an engine's own kernels cannot map the others' memory, and other ones run.
    """

    link: float
    shared: bool
    host: int


def fabric_of(hardware: Hardware) -> Fabric:
    """Fabric of a device; a superchip (with nvlink_c2c) has 4 devices a host, others 8."""
    try:
        link = link_of(hardware, "peer").bandwidth
    except RidgecastError:
        link = hardware.memory.bandwidth
    host = _TRAY if "nvlink_c2c" in hardware.links else _HOST
    return Fabric(link, not SWITCHED & set(hardware.links), host)


def terms(calls: Calls, fabric: Fabric) -> dict[str, F64]:
    """Non-negative terms [s] [rows] that a time may be a sum of.

    call: what every call costs. ring: r (n - 1) steps, tree: r log2 n, with r = 2 for an all-reduce
    and 1 else; an all-to-all takes one step, and may cost something for each of n - 1 peers and for
    the call. bus: r S (n - 1) / n over the link; shared: n times that where all devices share one.
    """
    n, r, apart = calls.gpus, calls.rounds, calls.exchange
    bus = r * calls.bytes * (n - 1.0) / n / fabric.link
    out = {
        "call": np.full(len(n), _MESSAGE),
        "ring": np.where(apart, 1.0, r * (n - 1.0)) * _MESSAGE,
        "tree": np.where(apart, 1.0, r * np.log2(n)) * _MESSAGE,
        "peers": apart * (n - 1.0) * _MESSAGE,
        "exchange": apart * _MESSAGE,
        "bus": bus,
    }
    if fabric.shared:
        out["shared"] = n * bus
    return out | {"network": calls.network}


def fit_base(calls: Calls, time: F64, fabric: Fabric) -> dict[str, float]:
    """Coefficients of `terms` fitted to measured times [s]; a call and its bytes always cost.

    Links to other nodes that no row crossed are taken at their own rate.
    """
    found = fit_terms(terms(calls, fabric), time, cost=_COST)
    return {
        **found, "call": max(found.get("call", 0.0), 0.05),  # 50 ns (assumed)
        "bus": max(found.get("bus", 0.0), 0.05), "network": found.get("network", 1.0),
    }  # fmt: skip


def base(calls: Calls, fabric: Fabric, coefficients: Mapping[str, float]) -> F64:
    """Time [s] [rows] by the fitted terms; never falls as bytes grow."""
    found = terms(calls, fabric)
    return analytic({n: found[n] for n in coefficients}, coefficients)


def balance(calls: Calls, fabric: Fabric, coefficients: Mapping[str, float]) -> F64:
    """log2 of the time of the bytes over that of everything else [rows]: where protocols change."""
    found = terms(calls, fabric)
    fixed = np.sum([c * found[n] for n, c in coefficients.items() if n in _FIXED], axis=0)
    whole = base(calls, fabric, coefficients)
    return np.log2(np.maximum(whole - fixed, 1e-12) / fixed)


def calls_of(op: Collective, rows: int, network: F64) -> Calls:
    """Columns of an operation [rows]; `network` [s] as its parts say."""
    label = op.kind if op.algorithm == "auto" else f"{op.kind}/{op.algorithm}"
    words = [np.full(rows, w) for w in (op.kind, label, op.dtype)]
    size, gpus, near = (np.broadcast_to(np.asarray(v, np.float64), (rows,))
                        for v in (op.bytes, op.gpus, op.gpus_per_node))  # fmt: skip
    return Calls(words[0], words[1], words[2], size, gpus, gpus / np.minimum(near, gpus), network)
