"""Time on a device that nobody measured, by the models of measured devices much like it.

    the measured devices of its chip family in that format -> each one's model, asked with this
    device's specifications -> their mean in log time -> interval from siblings that were held out

Owns which measured devices are like another, the mean of their models, the residuals of measured
devices that their siblings predict, and the folder siblings/. A sibling's model carries its
device's fitted constants and its library's choices over; only the specifications are the new ones,
and of them the power cap by `throttle`.
Where there is no sibling, `prior` answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from ..hardware import Hardware, get, reference_of
from ..kernels.bound import bound_of
from .bundle import open_bundle
from .device_spread import PROBABILITIES, SCORED, UNKNOWN, Residuals, calibrated, possible, scored
from .parity import save_parity
from .throttle import under_another_cap
from .time_model import Shapes, TimeModel, read_card

__all__ = [
    "MOST", "Relative", "Siblings", "engine_of", "fit_siblings", "load_siblings", "nearest",
    "save_siblings",
]  # fmt: skip

F64 = npt.NDArray[np.float64]
MOST = 2.0
"""Factor up to which every specification of a sibling may differ (assumed). The pairs that were
measured differ by up to 1.7; beyond, `prior` answers, which learned from devices of all sizes."""
_STRETCH = 0.5
"""Of the log difference beyond the measured pairs', added to each side (assumed: as a what-if)."""
_NEAR = 0.05
"""Log difference that counts as none when siblings are weighed: 1 / (difference + this)."""


class Line(Protocol):
    """What names a measured table: a line of a folder's index, or `Relative`."""

    @property
    def hardware(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def collection(self) -> str: ...


L = TypeVar("L", bound=Line)


@dataclass(frozen=True, slots=True)
class Relative:
    """A measured table, its shapes and times [s], and the model that was fitted to it."""

    hardware: str
    dtype: str
    collection: str
    shapes: Shapes
    time: F64
    model: TimeModel


def engine_of(line: Line) -> str:
    """Return the collection without its device: what ran, and in which version."""
    return line.collection.replace(line.hardware, "")


def nearest(hardware: Hardware, dtype: str, lines: Sequence[L]) -> list[tuple[L, float]]:
    """Lines of measured siblings and how far each is: the largest log ratio of a specification.

    Siblings share the chip family and the format, and no specification differs by more than MOST.
    The first is the nearest; the others ran the same engine as it. Of lines as near as each other
    the earlier is the nearest.
    """
    if not hardware.supports(dtype):
        return []
    family = hardware.family
    own = _specifications(hardware, dtype)
    found: list[tuple[L, float]] = []
    for line in lines:
        if line.dtype != dtype or line.hardware == hardware.base_name:
            continue
        other = reference_of(line.hardware)
        if other is None or other.family != family or not other.supports(dtype):
            continue
        far = float(np.abs(own - _specifications(other, dtype)).max())
        if far <= np.log(MOST) + 1e-9:
            found.append((line, far))
    found.sort(key=lambda pair: pair[1])
    return [pair for pair in found if engine_of(pair[0]) == engine_of(found[0][0])]


def _specifications(hardware: Hardware, dtype: str) -> F64:
    """Log of what a spec sheet says that the time of a GEMM depends on."""
    h = hardware
    return np.log([
        h.sm_count, h.clock, h.rate(dtype), h.memory.bandwidth, h.l2.capacity, h.board_power,
    ])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Siblings:
    """Quantiles of log(measured / predicted) of measured devices that their siblings predicted.

    `quantiles` [sizes, probabilities]; `reach` is the largest difference (log) between devices
    that they rest on; `samples` are held-out points of a fit that was just made.
    """

    quantiles: F64 = field(default_factory=lambda: UNKNOWN)
    reach: float = 0.0
    card: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[dict[str, Any], ...] = ()

    def predict(
        self, models: Sequence[tuple[TimeModel, float]], shapes: Shapes, dtype: str,
        hardware: Hardware, level: float = 0.9,
    ) -> tuple[F64, F64, F64]:  # fmt: skip
        """Time, lower, upper [s] per row from siblings' models, each with its log difference."""
        time = _carried(models, shapes, dtype, hardware)
        floor = bound_of(shapes.problem(dtype), hardware, "hot")
        beyond = max(min(far for _, far in models) - self.reach, 0.0)
        table = self.quantiles + _STRETCH * beyond * np.sign(PROBABILITIES - 0.5)
        return possible(time, floor, table, level)


def _carried(
    models: Sequence[tuple[TimeModel, float]], shapes: Shapes, dtype: str, hardware: Hardware
) -> F64:
    """Mean in log time of siblings' models asked with this device's specifications [s].

    Each model is asked under the power cap of its own device, which its constants know, and the
    clocks then give way to this device's cap, by the shipped power model: a model of one device
    cannot tell what a cap does.
    """
    p = shapes.problem(dtype)
    power = open_bundle().power()
    weights = np.array([1.0 / (far + _NEAR) for _, far in models])
    logs: list[F64] = []
    for model, _ in models:
        cap = get(model.card["hardware"]).board_power
        under = replace(hardware, board_power=cap, idle_power=None)
        time, *_ = model.predict(shapes, dtype, under)
        work = (p.flops, p.bytes, p.bytes)
        logs.append(np.log(under_another_cap(power, hardware, cap, dtype, work, time)))
    return np.exp(np.average(logs, axis=0, weights=weights))


def fit_siblings(relatives: Sequence[Relative], *, seed: int = 0) -> Siblings | None:
    """Calibrate on measured devices, each predicted by its siblings alone; None without a pair.

    One table for each device and format is scored against the siblings that the ladder would take
    for it, of the same engine. The model of a device never sees another's times.
    """
    found: list[Residuals] = []
    reach = 0.0
    tables = {(r.hardware, r.dtype): r for r in reversed(relatives)}  # the first of each counts
    for one in reversed(tables.values()):
        device = get(one.hardware)
        same = [r for r in relatives if engine_of(r) == engine_of(one)]
        near = nearest(device, one.dtype, same)
        if not near:
            continue
        at = np.random.default_rng(seed).permutation(len(one.time))[:SCORED]
        shapes = one.shapes.take(at)
        models = [(line.model, far) for line, far in near]
        time = _carried(models, shapes, one.dtype, device)
        floor = bound_of(shapes.problem(one.dtype), device, "hot")
        ratio = np.log(one.time[at] / time)
        found.append(Residuals(one.hardware, one.dtype, ratio, time, floor))
        reach = max(reach, near[0][1])
    if not found:
        return None
    scores, samples = scored(found, "family")
    card = {"seed": seed, "devices": sorted({f.hardware for f in found}), "scores": scores}
    return Siblings(calibrated(found), reach, card, tuple(samples))


def save_siblings(
    siblings: Siblings, folder: Path, *, licence: str = "", files: Sequence[str] = ()
) -> None:
    """Write card.json and parity.json into an existing folder."""
    quantiles = np.round(siblings.quantiles, 4).tolist()
    card = {**siblings.card, "reach": round(siblings.reach, 4), "quantiles": quantiles}
    (folder / "card.json").write_text(json.dumps(card, separators=(",", ":")))
    devices = ", ".join(siblings.card.get("devices", ()))
    save_parity(folder, siblings.samples, source=f"the time models of {devices}", licence=licence,
                files=files)  # fmt: skip


@lru_cache(maxsize=4)
def load_siblings(folder: Path) -> Siblings:
    """Undo `save_siblings`. Raises SpecError when the card is missing or damaged."""
    card = read_card(folder / "card.json")
    try:
        quantiles = np.asarray(card["quantiles"], float)
        reach = float(card["reach"])
        if quantiles.shape != UNKNOWN.shape:
            raise ValueError(f"quantiles {quantiles.shape}, need {UNKNOWN.shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(f"siblings in {folder} are damaged: {error!r}; train it again") from error
    return Siblings(quantiles, reach, card)
