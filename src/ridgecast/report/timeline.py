"""Timelines as pure data: named tracks of nested spans, counters; the Chrome Trace Event Format.

Owns the values, how they compose and the file that ui.perfetto.dev and chrome://tracing load
(Chromium, "Trace Event Format", the JSON object form). Knows nothing of what a span stands for:
`traces` builds timelines of predictions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SpecError
from ..units import Seconds, format_quantity
from .view import plain

__all__ = ["Counter", "Span", "Timeline", "Track", "beside", "in_sequence"]

_DUST = 1e-9  # of the end of a track: what rounding may leave between spans that touch
_NS = 1e9
_US = 1e-3  # microseconds a nanosecond


@dataclass(frozen=True, slots=True)
class Span:
    """Something that takes `duration` [s] from `start` [s]; `children` lie within, in order."""

    name: str
    start: Seconds
    duration: Seconds
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    children: tuple[Span, ...] = ()

    @property
    def end(self) -> Seconds:
        """Start plus duration."""
        return self.start + self.duration

    def shifted(self, by: Seconds) -> Span:
        """Move the span and its children."""
        inner = tuple(child.shifted(by) for child in self.children)
        return replace(self, start=self.start + by, children=inner)

    def walk(self) -> Iterator[Span]:
        """Yield the span, then all within it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def leaves(self) -> Iterator[Span]:
        """Yield the spans within that have no children."""
        return (span for span in self.walk() if not span.children)


@dataclass(frozen=True, slots=True)
class Track:
    """A row of a timeline: spans of one thread of a process, in order, none over another.

    Raises SpecError where spans overlap, end before they start or leave their parent.
    """

    process: str
    name: str
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        end = max((span.end for span in self.spans), default=0.0)
        _check(self.spans, 0.0, end, _DUST * max(end, 1e-12), f"track {self.name!r}")

    @property
    def total(self) -> Seconds:
        """Seconds of all spans, children not counted again."""
        return sum(span.duration for span in self.spans)

    def leaves(self) -> Iterator[Span]:
        """Yield every span that has no children."""
        for span in self.spans:
            yield from span.leaves()


def _check(spans: Sequence[Span], start: float, end: float, slack: float, where: str) -> None:
    at = start
    for span in spans:
        if not (span.duration >= 0.0 and span.start >= at - slack and span.end <= end + slack):
            raise SpecError(
                f"{where}: span {span.name!r} from {span.start} s for {span.duration} s; need one "
                f"that starts at {at} s or later and ends by {end} s"
            )
        _check(span.children, span.start, span.end, slack, f"{where}: {span.name}")
        at = span.end


@dataclass(frozen=True, slots=True)
class Counter:
    """A quantity that holds each of `values` (in `unit`) from its time [s] to the next."""

    process: str
    name: str
    unit: str
    times: tuple[Seconds, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.times) != len(self.values) or list(self.times) != sorted(self.times):
            raise SpecError(f"counter {self.name!r}: need as many values as times, times in order")

    def integral(self, end: Seconds) -> float:
        """Sum of values times how long each holds, up to `end` [s]."""
        spans = np.diff(np.append(np.asarray(self.times), end))
        return float(np.dot(spans, np.asarray(self.values)))


@dataclass(frozen=True, slots=True)
class Timeline:
    """Tracks and counters on one clock [s]; `about` says what it is of and what it stands on."""

    title: str
    tracks: tuple[Track, ...] = ()
    counters: tuple[Counter, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def duration(self) -> Seconds:
        """When the last span ends [s]."""
        return max((s.end for t in self.tracks for s in t.spans), default=0.0)

    def track(self, process: str, name: str) -> Track:
        """Find a track. Raises SpecError with what there is."""
        for one in self.tracks:
            if (one.process, one.name) == (process, name):
                return one
        known = ", ".join(f"{t.process}/{t.name}" for t in self.tracks)
        raise SpecError(f"track: got {process}/{name}, need one of {known}")

    def shifted(self, by: Seconds) -> Timeline:
        """Move everything by some seconds."""
        tracks = [replace(t, spans=tuple(s.shifted(by) for s in t.spans)) for t in self.tracks]
        counters = [replace(c, times=tuple(t + by for t in c.times)) for c in self.counters]
        return replace(self, tracks=tuple(tracks), counters=tuple(counters))

    def told(self, **about: Any) -> Timeline:
        """Add to what is said about it, such as the command."""
        return replace(self, about={**self.about, **about})

    def to_trace_events(self) -> dict[str, Any]:
        """Return one document of the Trace Event Format, its times in microseconds.

        Times are whole nanoseconds and nest exactly, as Perfetto wants them; the predicted seconds
        stand in each span's arguments.
        """
        processes = list(dict.fromkeys(x.process for x in (*self.tracks, *self.counters)))
        pids = {name: i + 1 for i, name in enumerate(processes)}
        events: list[dict[str, Any]] = []
        for name, pid in pids.items():
            events += _named("process", name, pid, 0, pid)
        tids = dict.fromkeys(processes, 0)
        for track in self.tracks:
            tids[track.process] += 1
            place = {"pid": pids[track.process], "tid": tids[track.process]}
            events += _named("thread", track.name, place["pid"], place["tid"], place["tid"])
            _events(track.spans, (0, _ns(self.duration) + len(track.spans)), place, events)
        for c in self.counters:
            events += [
                {"name": c.name, "ph": "C", "ts": _ns(t) * _US, "pid": pids[c.process],
                 "args": {c.unit or "value": v}}
                for t, v in zip(c.times, c.values, strict=True)
            ]  # fmt: skip
        return {"traceEvents": events, "displayTimeUnit": "ns",
                "otherData": {"title": self.title, **plain(dict(self.about))}}  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write the trace: to a temporary name, then rename."""
        path = Path(path)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        text = json.dumps(self.to_trace_events(), allow_nan=False, ensure_ascii=False)
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(path)
        return path

    def __str__(self) -> str:
        count = sum(1 for t in self.tracks for s in t.spans for _ in s.walk())
        lasts = format_quantity(self.duration, "time")
        return f"{self.title}: {lasts}, {count:,} spans on {len(self.tracks)} tracks"

    def _repr_html_(self) -> str:
        from ..richtext import line

        return line(f"{self}; .save('trace.json') writes what ui.perfetto.dev opens")


def _ns(seconds: Seconds) -> int:
    return round(seconds * _NS)


def _named(what: str, name: str, pid: int, tid: int, order: int) -> list[dict[str, Any]]:
    place = {"ph": "M", "pid": pid, "tid": tid}
    return [{"name": f"{what}_name", **place, "args": {"name": name}},
            {"name": f"{what}_sort_index", **place, "args": {"sort_index": order}}]  # fmt: skip


def _events(
    spans: Iterable[Span], within: tuple[int, int], place: dict[str, int],
    out: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Append complete events; whole nanoseconds, so that rounding breaks no nesting."""
    at, last = within
    for span in spans:
        start = min(max(_ns(span.start), at), last)
        end = min(max(_ns(span.end), start), last)
        args = {"time_s": span.duration, **plain(dict(span.args))}
        out.append({"name": span.name, "ph": "X", "ts": start * _US, "dur": (end - start) * _US,
                    "cat": str(span.args.get("kind", "span")), **place, "args": args})  # fmt: skip
        _events(span.children, (start, end), place, out)
        at = end


def beside(title: str, *timelines: Timeline, about: Mapping[str, Any] | None = None) -> Timeline:
    """Lay timelines on one clock; tracks of the same name are joined, in order of time."""
    tracks: dict[tuple[str, str], list[Span]] = {}
    counters: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for one in timelines:
        for t in one.tracks:
            tracks.setdefault((t.process, t.name), []).extend(t.spans)
        for c in one.counters:
            pairs = counters.setdefault((c.process, c.name, c.unit), [])
            pairs.extend(zip(c.times, c.values, strict=True))
    made = [Track(*key, tuple(sorted(spans, key=lambda s: s.start)))
            for key, spans in tracks.items()]  # fmt: skip
    steps = [
        Counter(*key, *(tuple(x) for x in zip(*sorted(pairs, key=lambda p: p[0]), strict=True)))
        for key, pairs in counters.items() if pairs
    ]  # fmt: skip
    told = {k: v for one in timelines for k, v in one.about.items()}
    return Timeline(title, tuple(made), tuple(steps), {**told, **(about or {})})


def in_sequence(title: str, *timelines: Timeline) -> Timeline:
    """Lay timelines one after another."""
    at, moved = 0.0, []
    for one in timelines:
        moved.append(one.shifted(at))
        at += one.duration
    return beside(title, *moved)
