"""The Replay twin of every meter: what one said, written down and said again without the device.

    Recorder(get_meter("nvml"), "run.jsonl")   a meter like the one inside, that writes as it reads
    Replay("run.jsonl")                        the same answers in the same order, no device

One JSON object a line, each written and flushed as it is taken, so that a crash loses nothing:
the first says which meter and schema, then "window" (a Reading), "note" (facts that the caller adds
to the window before it, such as how many runs it held) and "throttled" (a change of state).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MeasurementError, NoDataError, SpecError
from ..base import DeviceInfo, Meter, Probe, Reading

__all__ = ["SCHEMA_VERSION", "Recorder", "Replay", "reading_from", "reading_to"]

SCHEMA_VERSION = 1


def reading_to(reading: Reading) -> dict[str, Any]:
    """Plain values of a reading for JSON: units in the keys, null for what is not known."""
    return {
        "duration_s": reading.duration,
        "energy_j": _plain(reading.energy),
        "mean_power_w": _plain(reading.mean_power),
        "reason": reading.reason,
        "throttle": list(reading.throttle),
        "samples": {k: [_plain(x) for x in v.tolist()] for k, v in reading.samples.items()},
        "facts": {k: _plain(v) for k, v in reading.facts.items()},
    }


def reading_from(values: Mapping[str, Any]) -> Reading:
    """Undo `reading_to`. Raises SpecError for lost fields."""
    try:
        return Reading(
            duration=float(values["duration_s"]),
            energy=_number(values["energy_j"]),
            mean_power=_number(values["mean_power_w"]),
            reason=str(values["reason"]),
            throttle=tuple(values["throttle"]),
            samples={
                k: np.array([_number(x) for x in v]) for k, v in values["samples"].items()
            },
            facts={k: np.nan if v is None else v for k, v in values["facts"].items()},
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SpecError(f"recording: a window lacks or garbles {error}") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


class Recorder:
    """A meter that asks the one inside and appends what it says to a file."""

    def __init__(self, meter: Meter, path: str | Path) -> None:
        self.meter, self.name = meter, meter.name
        self._path = Path(path)
        self._state: tuple[str, ...] = ()
        self._begun = False

    def probe(self) -> Probe:
        """Probe the meter inside."""
        return self.meter.probe()

    def start(self) -> None:
        """Begin a window of the meter inside."""
        self.meter.start()

    def stop(self) -> Reading:
        """End the window and write it."""
        reading = self.meter.stop()
        self._write({"kind": "window", **reading_to(reading)})
        self._state = ()
        return reading

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write facts that belong to the window before."""
        self._write({"kind": "note", "facts": {k: _plain(v) for k, v in facts.items()}})

    def throttled(self) -> tuple[str, ...]:
        """Ask the meter inside; a change of state is written."""
        reasons = self.meter.throttled()
        if reasons != self._state:
            self._write({"kind": "throttled", "reasons": list(reasons)})
            self._state = reasons
        return reasons

    def _write(self, line: dict[str, Any]) -> None:
        lines = [line]
        if not self._begun:
            device = self.meter.probe().device
            lines.insert(0, {
                "kind": "meter",
                "schema_version": SCHEMA_VERSION,
                "name": self.name,
                "device": "" if device is None else device.name,
                "uuid": "" if device is None else device.uuid,
                "device_kind": "" if device is None else device.kind,
            })  # fmt: skip
            self._begun = True
            _drop_torn_line(self._path)
        with self._path.open("a", encoding="utf-8") as file:
            for entry in lines:
                file.write(json.dumps(entry, allow_nan=False) + "\n")


def _drop_torn_line(path: Path) -> None:
    """Cut what a writer that was stopped in mid-line left behind the last whole line."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


class Replay:
    """Answers of a recorded meter, in order; keeps its name in `recorded`.

    `throttled` walks through the states recorded before the next window and stays at the last;
    `stop` hands out the next window, with its notes among the facts. Raises MeasurementError when
    the recording is at its end. Raises NoDataError for no file, SpecError for one of another kind.
    """

    name = "replay"

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        head, self._readings, self._states = _load(self._path)
        self.recorded: str = head["name"]
        self._device = DeviceInfo(head.get("device", ""), head.get("device_kind") or "gpu",
                                  uuid=head.get("uuid", ""))  # fmt: skip
        self._window, self._open = 0, False
        self._at = 0

    def probe(self) -> Probe:
        """Works as long as windows are left."""
        left = len(self._readings) - self._window
        reason = f"recording of {self.recorded}, {left} windows left"
        return Probe(left > 0, reason=reason, device=self._device)

    def start(self) -> None:
        """Begin a window. Raises MeasurementError when one is open or none is left."""
        if self._open:
            raise MeasurementError("replay: a window is open already; stop() ends it")
        if self._window >= len(self._readings):
            raise MeasurementError(
                f"replay: {self._path} holds {len(self._readings)} windows, and all were used"
            )
        self._open = True

    def stop(self) -> Reading:
        """Return the next recorded window. Raises MeasurementError when none is open."""
        if not self._open:
            raise MeasurementError("replay: no window is open; start() begins one")
        self._open = False
        self._window, self._at = self._window + 1, 0
        return self._readings[self._window - 1]

    def throttled(self) -> tuple[str, ...]:
        """Next recorded state before the next window; the last one stays."""
        states = self._states.get(self._window, [()])
        self._at = min(self._at + 1, len(states))
        return states[self._at - 1]


def _load(path: Path) -> tuple[dict[str, Any], list[Reading], dict[int, list[tuple[str, ...]]]]:
    """Head, windows, and throttle states by the window that they came before."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NoDataError(f"no recording at {path}: {error.strerror}") from error
    head: dict[str, Any] = {}
    readings: list[Reading] = []
    states: dict[int, list[tuple[str, ...]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
            kind = entry["kind"]
        except (ValueError, KeyError, TypeError) as error:
            if number == text.count("\n") + 1:
                break  # the writer was stopped in the middle of its last line
            raise SpecError(f"{path}, line {number}: not a record of a meter") from error
        if kind == "meter":
            version = entry.get("schema_version")
            if version != SCHEMA_VERSION:
                raise SpecError(f"{path}: schema_version {version!r}, need {SCHEMA_VERSION}")
            head = head or entry
        elif kind == "window":
            readings.append(reading_from(entry))
        elif kind == "note" and readings:
            facts = {**readings[-1].facts, **entry["facts"]}
            readings[-1] = replace(readings[-1], facts=facts)
        elif kind == "throttled":
            states.setdefault(len(readings), []).append(tuple(entry["reasons"]))
    if not head:
        raise SpecError(f"{path}: no head line that names the meter")
    return head, readings, states
