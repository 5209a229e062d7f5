"""What to measure: a sweep file (TOML) or a list of points, with the protocol to follow.

    provider = "numba"                 [[grid]]
    seed = 1                           kernel = "tiled"
    meters = ["rapl"]                  m = {from = 64, to = 1024, steps = 5, scale = "log2"}
    [protocol]                         n = "m"
    precision = 0.01                   k = "m"
    time_cap = "0.5 s"                 tile = [4, 8, 16, 32]
                                       where = ["tile <= m"]

Owns the file's keys and the checks on them; `blocks` turns blocks into points. Touches no device.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SpecError, unknown_name
from ..store.schema import CONFIG_COLUMNS
from ..units import parse_quantity
from .base import Point
from .blocks import BLOCKS, MOST_POINTS, expand, read_block
from .energy import EnergyProtocol
from .meters import METERS
from .protocol import Protocol
from .providers import PROVIDERS

__all__ = ["Plan", "load_plan", "read_plan"]

_KEYS = ("schema_version", "name", "provider", "options", "meters", "seed", "protocol", *BLOCKS)
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Points to measure in order, each once, and how.

    `provider` and `meters` are names of the registries ("" and () leave them to the caller);
    `options` go to the provider's constructor. `duplicates` and `excluded` count the points that
    were given more than once and those of grids and lists that constraints left out.
    """

    points: tuple[Point, ...]
    name: str = ""
    provider: str = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    meters: tuple[str, ...] = ()
    seed: int = 0
    protocol: Protocol = field(default_factory=Protocol)
    duplicates: int = 0
    excluded: int = 0

    @classmethod
    def of(cls, points: Sequence[Point], **settings: Any) -> Plan:
        """Plan of points given in Python; repeated ones are dropped and counted."""
        unique = {point.key: point for point in reversed(points)}
        kept = tuple(point for point in points if unique.pop(point.key, None) is not None)
        return cls(kept, duplicates=len(points) - len(kept), **settings)


def load_plan(path: str | Path) -> Plan:
    """Read a sweep file. Raises SpecError with the field path for anything wrong in it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise SpecError(f"sweep file {str(path)!r}: cannot read it ({reason})") from None
    return read_plan(text, name=path.stem, origin=path.name)


def read_plan(text: str, *, name: str = "sweep", origin: str = "sweep") -> Plan:
    """Plan of TOML text; `origin` names it in messages.

    >>> plan = read_plan('''
    ... [[grid]]
    ... kernel = "tiled"
    ... shape = ["64x64x64", "128x128x128"]
    ... tile = [8, 16, 100]
    ... where = "tile <= m"
    ... ''')
    >>> len(plan.points), plan.excluded
    (5, 1)
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{origin}: not valid TOML: {error}") from None
    try:
        return _plan(document, name)
    except SpecError as error:
        raise SpecError(f"{origin}: {error}") from None


def _plan(document: Mapping[str, Any], name: str) -> Plan:
    for key in document:
        if key not in _KEYS:
            raise SpecError(f"{key}: {unknown_name('key', key, _KEYS)}")
    version = document.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise SpecError(f"schema_version: got {version!r}, this version reads {SCHEMA_VERSION}")
    seed = document.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise SpecError(f"seed: got {seed!r}, need a whole number from 0")
    settings: dict[str, Any] = {
        "name": _text(document.get("name", name), "name"),
        "provider": _registered(document.get("provider", ""), "provider", PROVIDERS),
        "options": document.get("options", {}),
        "meters": _meters(document.get("meters", [])),
        "protocol": _protocol(document.get("protocol", {})),
    }
    if not isinstance(settings["options"], Mapping):
        raise SpecError("options: need a table of the provider's options")
    points, excluded = _points(document, seed)
    if not points:
        needed = ", ".join(f"[[{kind}]]" for kind in BLOCKS)
        told = f"the constraints left out all {excluded}" if excluded else f"need one of {needed}"
        raise SpecError(f"the file holds no point: {told}")
    return Plan.of(points, seed=seed, excluded=excluded, **settings)


def _points(document: Mapping[str, Any], seed: int) -> tuple[list[Point], int]:
    """Points of all blocks in the file's order, and how many were left out."""
    points: list[Point] = []
    excluded = 0
    for kind in (key for key in document if key in BLOCKS):
        blocks = document[kind]
        if not isinstance(blocks, list):
            raise SpecError(f"{kind}: write it as [[{kind}]], a block may come more than once")
        for i, table in enumerate(blocks):
            block = read_block(kind, table, f"{kind}[{i}]", CONFIG_COLUMNS)
            found, left_out = expand(block, np.random.default_rng([seed, BLOCKS.index(kind), i]))
            points += found
            excluded += left_out
            if len(points) > MOST_POINTS:
                raise SpecError(f"{block.field}: more than {MOST_POINTS} points in one file")
    return points, excluded


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{path}: got {value!r}, need text in quotes")
    return value


def _registered(value: Any, path: str, known: Mapping[str, str]) -> str:
    name = _text(value, path)
    if name and name not in known:
        raise SpecError(f"{path}: {unknown_name(path, name, known)}")
    return name


def _meters(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list):
        raise SpecError('meters: need a list of names, such as ["nvml"]')
    return tuple(_registered(name, f"meters[{i}]", METERS) for i, name in enumerate(names))


def _protocol(table: Any) -> Protocol:
    """Protocol of its table; durations are seconds or text with a unit ("0.5 s")."""
    if not isinstance(table, Mapping):
        raise SpecError("protocol: need a table")
    energy = table.get("energy", {})
    if not isinstance(energy, Mapping):
        raise SpecError("protocol.energy: need a table")
    plain = {key: value for key, value in table.items() if key != "energy"}
    given = _fields(plain, Protocol(), "protocol", skip="energy")
    return Protocol(
        **given, energy=EnergyProtocol(**_fields(energy, EnergyProtocol(), "protocol.energy"))
    )


def _fields(table: Mapping[str, Any], default: Any, path: str, skip: str = "") -> dict[str, Any]:
    """Values for a dataclass, each of the kind that its default has."""
    known = [f.name for f in fields(default) if f.name != skip]
    found: dict[str, Any] = {}
    for key, written in table.items():
        if key not in known:
            raise SpecError(f"{path}.{key}: {unknown_name('key', key, known)}")
        kind, value = type(getattr(default, key)), written
        if kind is float and isinstance(written, str):
            value = parse_quantity(written, "time", field=f"{path}.{key}")
        elif kind is float and type(written) is int:
            value = float(written)
        if type(value) is not kind:
            raise SpecError(f"{path}.{key}: got {value!r}, need {kind.__name__}")
        found[key] = value
    return found
