"""Where the microseconds and the joules of one prediction go, as parts that sum to it.

Owns the split of a predicted time and energy. Knows no model folder: the caller brings the
prediction, the analytic kernel cost and the power basis.

Decision: the speed of light is kept as it is, because nothing can undercut it. What the analytic
kernel adds to it (padding, waves, latency, launch ...) keeps its own seconds where the prediction
is slower than the analytic kernel, and the difference is its own part, `beyond_the_physics`:
learned, or the documented middle factor of basis `analytic`. Where the prediction is faster, those
parts were overestimates, so they shrink by one factor that is told; no part is ever negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SpecError
from ..hardware import Hardware
from ..kernels import clblast, library, problem, simt, tensor, tiled
from ..kernels.config import ClblastConfig, LibraryConfig, SimtConfig, TensorConfig, TiledConfig
from ..kernels.cost import KernelCost
from ..kernels.problem import Problem
from ..kernels.tile import simt_rate
from ..ops import Gemm
from ..units import format_quantity
from .power import PowerModel, utilisations
from .prediction import Prediction

__all__ = ["BEYOND", "Kernel", "Part", "energy_parts", "kernel_of", "time_parts"]

DUST = 1e-12  # a share that is the rounding of a difference, not a part
BEYOND = "beyond_the_physics"
_LEVELS = {
    "memory": ("memory", "memory_bytes"),
    "l2": ("L2", "l2_bytes"),
    "shared": ("shared memory", "shared_traffic"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a whole: time [s] or energy [J], its share of the whole, and why it is there."""

    name: str
    value: float
    share: float
    why: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """The analytic kernel behind a prediction: its cost, tile and peak rate [flop/s]."""

    problem: Problem
    cost: KernelCost
    config: Any
    rate: float

    def number(self, field: str) -> float:
        """One field of the cost as a number."""
        return float(np.ravel(getattr(self.cost, field))[0])


def kernel_of(op: Gemm, hardware: Hardware, config: Any = None) -> Kernel:
    """Analytic kernel of an op on a device: the library's choice, or the one of `config`.

    Raises SpecError for a configuration value that holds several, UnsupportedError where the
    kernel cannot run the format.
    """
    sizes = (np.array([float(x)]) for x in (op.m, op.n, op.k, op.batch))
    p = problem(*sizes, dtype=op.dtype)
    if config is None or isinstance(config, LibraryConfig):
        found = library(p, hardware, config=config)
        return Kernel(p, found.cost, found.config.row(0), hardware.rate(p.dtype))
    if len(config) != 1:
        raise SpecError(f"config: holds {len(config)} configurations; explain one, or use tune")
    if isinstance(config, TensorConfig):
        return Kernel(p, tensor(p, config, hardware), config.row(0), hardware.rate(p.dtype))
    rate = simt_rate(hardware, p.dtype)
    if isinstance(config, TiledConfig):
        return Kernel(p, tiled(p, config, hardware), config.row(0), rate)
    if isinstance(config, SimtConfig):
        return Kernel(p, simt(p, config, hardware), config.row(0), rate)
    if isinstance(config, ClblastConfig):
        return Kernel(p, clblast(p, config, hardware), config.row(0), rate)
    raise SpecError(f"config: {type(config).__name__} is no kernel configuration of a GEMM")


def _floor(p: Problem, hardware: Hardware, bound: float) -> tuple[str, str]:
    """Name and reason of the speed of light."""
    flops = float(p.flops[0])
    compute = flops / hardware.rate(p.dtype)
    if compute >= bound * (1.0 - 1e-9):
        rate = format_quantity(hardware.rate(p.dtype), "flops_per_s")
        work = format_quantity(flops, "flops")
        return "ideal_compute", f"{work} at the peak rate of {p.dtype}, {rate}"
    unique = float(p.bytes[0])
    l2 = unique / hardware.l2.bandwidth
    if abs(l2 - bound) <= 1e-9 * bound:
        wide = format_quantity(hardware.l2.bandwidth, "bytes_per_s")
        return "ideal_l2", f"{format_quantity(unique, 'bytes')} cross the L2 once at {wide}"
    moved = format_quantity(bound * hardware.memory.bandwidth, "bytes")
    wide = format_quantity(hardware.memory.bandwidth, "bytes_per_s")
    return "ideal_memory", f"{moved} that no cache can keep, from memory at {wide}"


def _physics(kernel: Kernel, hardware: Hardware, bound: float) -> dict[str, tuple[float, str]]:
    """Return what the analytic kernel adds to the speed of light, by part [s]."""
    c, number = kernel.cost, kernel.number
    whole = float(np.ravel(c.overlapped)[0])
    exposed = next(n for n in ("compute", "memory", "l2", "shared") if number(n) == whole)
    over = max(whole - bound, 0.0)
    parts: dict[str, tuple[float, str]] = {}
    if exposed == "compute":
        unit = max(number("useful_flops") / kernel.rate, bound)
        padded = max(min(number("flops") / kernel.rate, whole), unit)
        parts["slower_unit"] = (
            unit - bound, "the kernel's unit has a lower peak than the device's best for the format"
        )  # fmt: skip
        full = number("tile_efficiency")
        parts["tile_padding"] = (
            padded - unit, f"tiles reach over the edges: {100 * full:.1f} % of the work is useful"
        )  # fmt: skip
        parts["issue"] = (
            max(whole - padded, 0.0), "instructions besides the multiply-adds take issue slots"
        )  # fmt: skip
    else:
        level = {"memory": "memory", "l2": "L2", "shared": "shared memory"}[exposed]
        size = number(
            {"memory": "memory_bytes", "l2": "l2_bytes", "shared": "shared_traffic"}[exposed]
        )
        parts[f"{exposed}_traffic"] = (
            over,
            f"{format_quantity(size, 'bytes')} cross the {level} (operands again for every tile), "
            "which the arithmetic does not hide",
        )
    waves = number("waves")
    launch = format_quantity(hardware.launch_latency, "time")
    parts |= {
        "latency": (number("latency"), "waiting for loads that no other work hides"),
        "tail": (number("tail"), f"{waves:.2f} waves of blocks take {np.ceil(waves):.0f} rounds"),
        "fixup": (number("fixup"), "partial sums of a divided k are written, read and joined"),
        "prologue": (number("prologue"), "the last k step has no load left to hide behind"),
        "launch": (number("launch"), f"fixed cost of one kernel replayed in a graph, {launch}"),
    }
    return parts


def time_parts(
    prediction: Prediction, kernel: Kernel, hardware: Hardware
) -> tuple[tuple[Part, ...], float]:
    """Parts that sum to the predicted time, and the factor on what physics adds to the bound.

    The factor is 1 unless the prediction is faster than the analytic kernel (module docstring).
    """
    time, bound = prediction.time, prediction.bound
    name, why = _floor(kernel.problem, hardware, bound)
    added = _physics(kernel, hardware, bound)
    extra = sum(value for value, _ in added.values())
    left = time - bound
    factor = min(left / extra, 1.0) if extra > 0.0 else 1.0
    found = {name: (bound, why)}
    found |= {key: (value * factor, reason) for key, (value, reason) in added.items()}
    found[BEYOND] = (max(left - extra, 0.0), _beyond(prediction, time / (bound + extra)))
    return tuple(
        Part(key, value, value / time, reason)
        for key, (value, reason) in found.items()
        if value > DUST * time
    ), factor


def _beyond(prediction: Prediction, ratio: float) -> str:
    if prediction.basis == "analytic":
        return (
            f"x{ratio:.3g}: the documented middle of measured over analytic time; nobody measured "
            "this kernel here"
        )
    verb = "are" if prediction.basis == "measured" else "were"
    return f"x{ratio:.3g}: how much slower than the analytic kernel real runs {verb}, unexplained"


def energy_parts(
    prediction: Prediction, kernel: Kernel, hardware: Hardware, power: PowerModel
) -> tuple[tuple[Part, ...], dict[str, float]]:
    """Parts that sum to the predicted energy, and what the power limit holds back.

    The basis of `predict.power`: idle power over the time, then operations and bytes by their
    shares of the demand. Demand beyond the power limit is never drawn, so it is no part: `demand`
    (1 = all that is left above idle) and `held_back_w` tell it. Empty where energy is unknown.
    """
    if prediction.energy is None or prediction.power is None:
        return (), {}
    p, dtype, energy = kernel.problem, kernel.problem.dtype, prediction.energy
    basis = power.basis_of(hardware)
    work = (p.flops, p.bytes, p.bytes)
    u = utilisations(hardware, dtype, work, np.array([prediction.time]))
    shares = {
        "operations": basis.coefficient(dtype) * float(u[0][0]) ** basis.gamma,
        "memory_bytes": basis.memory * float(u[1][0]),
        "l2_bytes": basis.l2 * float(u[2][0]),
    }
    demand = sum(shares.values())
    share = float(basis.share(np.array([demand]))[0])
    idle = energy * basis.idle / share
    why = {
        "operations": f"{dtype} multiply-adds at {100 * float(u[0][0]):.1f} % of the peak rate",
        "memory_bytes": f"bytes at {100 * float(u[1][0]):.1f} % of the memory bandwidth",
        "l2_bytes": f"bytes at {100 * float(u[2][0]):.1f} % of the L2 bandwidth",
    }
    idle_text = format_quantity(basis.idle * hardware.board_power, "power")
    found = {"idle": (idle, f"{idle_text} that a busy device draws whatever it does")}
    found |= {
        key: ((energy - idle) * value / demand, why[key]) for key, value in shares.items() if value
    }
    drawn = (share - basis.idle) * hardware.board_power
    wanted = (basis.ceiling - basis.idle) * hardware.board_power * demand
    parts = tuple(Part(key, v, v / energy, reason) for key, (v, reason) in found.items())
    return parts, {"demand": demand, "held_back_w": max(wanted - drawn, 0.0)}
