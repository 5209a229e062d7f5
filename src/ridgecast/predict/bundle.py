"""A folder of trained models: its index, what is loaded from it and when.

Owns the layout on disk (card.json is the index; time/<name>/, siblings/, prior/, clblast_sgemm/,
power/) and the choice of a time model for a device, a format and a collection. Fits nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from ..errors import NoDataError, SpecError
from ..hardware import Hardware
from .time_model import Shapes, TimeModel, load_time_model, read_card

if TYPE_CHECKING:
    from ..ops.base import Op
    from .calibrated import CalibratedModel
    from .config_model import ConfigModel
    from .operator_features import Learned
    from .power import PowerModel
    from .prior import Prior
    from .siblings import Siblings

__all__ = ["FORMAT", "SHIPPED", "Bundle", "Entry", "Measured", "open_bundle"]

FORMAT = 1
SHIPPED = Path(__file__).parent / "trained"
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index: a time model's folder and what it was fitted on."""

    folder: str
    hardware: str
    dtype: str
    collection: str
    launch: str
    sustained: bool
    rows: int

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """Preference among collections: bursts, then graph-launched, then the later name."""
        return (not self.sustained, self.launch == "graph", self.collection)


@dataclass(frozen=True, slots=True)
class Measured:
    """Measured points of one collection, sorted by key: shapes and times [s]."""

    shapes: Shapes
    time: F64
    n: F64
    k: F64
    keys: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]

    @classmethod
    def of(cls, shapes: Shapes, time: F64) -> Measured:
        """Index points by (m, n, k) for exact look-up; batch 1 only."""
        n, k = np.unique(shapes.n), np.unique(shapes.k)
        keys = _keys(n, k, shapes)
        order = np.argsort(keys, kind="stable")
        return cls(shapes, time, n, k, keys[order], order)

    def find(self, shapes: Shapes) -> F64:
        """Measured time per row; NaN where the point was never measured."""
        known = np.isin(shapes.n, self.n) & np.isin(shapes.k, self.k) & (shapes.batch == 1)
        out = np.full(len(shapes.m), np.nan)
        if known.any():
            wanted = _keys(self.n, self.k, shapes.take(known))
            at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
            hit = self.keys[at] == wanted
            rows = np.flatnonzero(known)[hit]
            out[rows] = self.time[self.order[at[hit]]]
        return out

    def nearest(self, m: float, n: float, k: float, count: int = 5) -> list[dict[str, float]]:
        """Measured points nearest in log size."""
        s = self.shapes
        far = sum(np.log2(x / v) ** 2 for x, v in zip((s.m, s.n, s.k), (m, n, k), strict=True))
        at = np.argsort(far, kind="stable")[:count]
        return [
            {"m": int(s.m[i]), "n": int(s.n[i]), "k": int(s.k[i]), "time_s": float(self.time[i])}
            for i in at
        ]


def _keys(n: F64, k: F64, shapes: Shapes) -> npt.NDArray[np.int64]:
    pair = np.searchsorted(n, shapes.n) * len(k) + np.searchsorted(k, shapes.k)
    return (pair.astype(np.int64) << 32) + shapes.m.astype(np.int64)


@dataclass(frozen=True)
class Bundle:
    """An opened model folder; its models are loaded on first use."""

    path: Path
    card: Mapping[str, Any]
    entries: tuple[Entry, ...]

    @property
    def shipped(self) -> bool:
        """Whether this is the folder that the package ships."""
        return self.path == SHIPPED

    def entry(self, hardware: str, dtype: str, collection: str = "") -> Entry | None:
        """Return the preferred time model of a device and format; None when there is none.

        `collection` picks one by any part of its name; raises NoDataError when none matches.
        """
        found = [e for e in self.entries if e.hardware == hardware and e.dtype == dtype]
        if collection:
            named = [e for e in found if collection in e.collection]
            if found and not named:
                have = ", ".join(e.collection for e in found)
                raise NoDataError(
                    f"no collection {collection!r} of {hardware} {dtype}; have {have}"
                )
            found = named
        return max(found, key=lambda e: e.rank, default=None)

    def relative(self, hardware: Hardware, dtype: str, collection: str = "") -> Entry | None:
        """Return the model of another format on the same device that is most like `dtype`.

        Same unit first, then the format that the multiplier sees, the nearest width in bits, and
        the same use of scales; a burst in a graph before host launches and sustained runs.
        """
        wanted = DTYPES[dtype]

        def unlike(e: Entry) -> tuple[bool, bool, float, bool, bool, bool]:
            other_unit = hardware.unit(e.dtype) != hardware.unit(dtype)
            bits = abs(np.log2(DTYPES[e.dtype].bits / wanted.bits))
            other_kind = bool(DTYPES[e.dtype].scale_block) != bool(wanted.scale_block)
            host = e.launch == "stream"
            return (other_unit, e.dtype != wanted.compute, bits, other_kind, host, e.sustained)

        found = [
            e for e in self.entries
            if e.hardware == hardware.base_name and hardware.supports(e.dtype)
            and collection in e.collection
        ]  # fmt: skip
        return min(found, key=unlike, default=None)

    def time_model(self, entry: Entry) -> TimeModel | CalibratedModel:
        """Load a time model (cached). Raises SpecError when its folder is damaged."""
        return _time_model(self.path / entry.folder)

    def measured(self, entry: Entry) -> Measured | None:
        """Load the points that a model was trained on, where the folder keeps them."""
        return _measured(self.path / entry.folder)

    def prior(self) -> Prior | None:
        """Load the model for devices without measurements; None when the folder has none."""
        from .prior import load_prior

        folder = self.path / "prior"
        return load_prior(folder) if (folder / "card.json").exists() else None

    def near(
        self, hardware: Hardware, dtype: str, collection: str = ""
    ) -> list[tuple[Entry, float]]:
        """Return preferred models of a device's siblings in a format, and how far each one is.

        The nearest comes first, see `siblings.nearest`; models that calibration made of a prior
        are not carried on. `collection` keeps those whose name contains it.
        """
        from .siblings import nearest

        ranked = sorted(self.entries, key=lambda e: e.rank, reverse=True)
        own = [e for e in ranked if e.dtype == dtype and collection in e.collection
               and not _is_calibrated(self.path / e.folder)]  # fmt: skip
        # host time and a power limit are those of the machine that was measured
        quiet = [e for e in own if e.launch != "stream" and not e.sustained]
        return nearest(hardware, dtype, quiet)

    def siblings(self) -> Siblings:
        """Load how far siblings are to be trusted: of this folder, else of the shipped one."""
        from .siblings import load_siblings

        own = self.path / "siblings"
        return load_siblings(own if (own / "card.json").exists() else SHIPPED / "siblings")

    def power(self) -> PowerModel:
        """Load the folder's power model, else the shipped one."""
        own = self.path / "power" / "card.json"
        return _power(own if own.exists() else SHIPPED / "power" / "card.json")

    def operator(self, op: str, hardware: str, collection: str = "") -> Learned | None:
        """Load the preferred model of an operation on a device; None when there is none.

        `collection` picks one by any part of its name; raises NoDataError when none matches.
        """
        found = [
            e for e in self.card.get("operators", ()) if (e["op"], e["hardware"]) == (op, hardware)
        ]
        named = [e for e in found if collection in e["collection"]]
        if found and not named:
            have = ", ".join(e["collection"] for e in found)
            raise NoDataError(f"no collection {collection!r} of {op} on {hardware}; have {have}")
        if not named:
            return None
        return _operator(self.path / max(named, key=_preference)["folder"])

    def operators(
        self, op: Op, rows: int, hardware: str, collection: str = ""
    ) -> list[tuple[Learned | None, npt.NDArray[np.bool_]]]:
        """Return models of an operation [rows] on a device, each with the rows that it answers.

        A line of the index may be `for` some rows alone (a list of field values, any of which
        meet them): those rows are its own, all others the preferred line's without. Rows that the
        calls of a collection cannot be go to another one, whatever `collection` says. None stands
        for rows that no model is for. Raises NoDataError when `collection` has none for any row.
        """
        lines = [e for e in self.card.get("operators", ())
                 if (e["op"], e["hardware"]) == (op.name, hardware)]  # fmt: skip
        named = [e for e in lines if collection in e["collection"]]
        left = np.ones(rows, bool)
        out: list[tuple[Learned | None, npt.NDArray[np.bool_]]] = []
        ranked = sorted(named, key=lambda e: ("for" in e, _preference(e)), reverse=True)
        for line in ranked:
            mine = left & _meant(line, op, rows)
            if mine.any():
                model = _operator(self.path / line["folder"])
                if "for" not in line and not model.knows(op):
                    model = next((m for m in self._others(ranked, line) if m.knows(op)), model)
                out += self._reached(model, mine, op, lines)
                left = left & ~mine
        if collection and lines and not out:
            have = ", ".join(e["collection"] for e in lines)
            raise NoDataError(
                f"no collection {collection!r} of such {op.name} on {hardware}; have {have}"
            )
        return [*out, (None, left)] if left.any() else out

    def collection_of(
        self,
        op: str,
        hardware: str,
        *words: str,
        but: tuple[str, ...] = (),
        until: str = "",
    ) -> str:
        """Name of a device's preferred collection of an operation that contains words, or "".

        Those that contain a word of `but` do not count.
        `until` is a release of software: later ones do not count, but for the oldest there is.
        """
        own = [
            e for e in self.card.get("operators", ()) if (e["op"], e["hardware"]) == (op, hardware)
        ]
        found = [
            e for e in own
            if all(word in e["collection"] for word in words)
            and not any(word in e["collection"] for word in but)
        ]  # fmt: skip
        if until and found:
            named = _release(f"/-{until}")
            oldest = min(_release(e["collection"]) for e in found)
            found = [e for e in found if _release(e["collection"]) <= max(named, oldest)]
        return str(max(found, key=_preference)["collection"]) if found and all(words) else ""

    def gemm_collection_of(self, hardware: str, dtype: str, word: str) -> str:
        """Name of a device's preferred GEMM collection that contains a word, or "".

        Those that hold the host's time to launch are left out: engines replay graphs.
        """
        found = [
            e for e in self.entries
            if (e.hardware, e.dtype) == (hardware, dtype) and word in e.collection
            and e.launch != "stream"
        ]  # fmt: skip
        return max(found, key=lambda e: e.rank).collection if found else ""

    def _reached(
        self,
        model: Learned,
        mine: npt.NDArray[np.bool_],
        op: Op,
        lines: Sequence[Mapping[str, Any]],
    ) -> list[tuple[Learned | None, npt.NDArray[np.bool_]]]:
        """Part rows by what a model reaches; the preferred one of those that do has the others."""
        near = mine & np.broadcast_to(model.reaches(op), mine.shape)
        far = mine & ~near
        if not far.any():
            return [(model, mine)]
        ranked = sorted(lines, key=_preference, reverse=True)
        able = [m for m in self._others(ranked, {}) if (m.reaches(op) | ~far).all()]
        other = next((m for m in able if m.knows(op)), able[0] if able else None)
        if other is None:
            return [(model, mine)]
        return [(m, rows) for m, rows in ((model, near), (other, far)) if rows.any()]

    def _others(
        self, lines: Sequence[Mapping[str, Any]], but: Mapping[str, Any]
    ) -> Iterator[Learned]:
        """Load the other lines' models, in the order of preference."""
        for line in lines:
            if line is not but and "for" not in line:
                yield _operator(self.path / line["folder"])

    def pooled_operator(self, op: str) -> Learned | None:
        """Load the model of an operation for devices without measurements, where there is one."""
        folder = self.path / "operators" / f"pooled-{op}"
        return _operator(folder) if (folder / "card.json").exists() else None

    def configurations(self) -> ConfigModel | None:
        """Load the folder's model of CLBlast configurations; None when it has none."""
        folder = self.path / "clblast_sgemm"
        return _configurations(folder) if (folder / "card.json").exists() else None


def _preference(line: Mapping[str, Any]) -> tuple[bool, int, str]:
    """Models of all rows before those of some, then by rank, then the later name."""
    return ("for" not in line, line.get("rank", 0), line["collection"])


def _meant(line: Mapping[str, Any], op: Op, rows: int) -> npt.NDArray[np.bool_]:
    """Rows that a line of the index is for."""
    meant = np.zeros(rows, bool) if "for" in line else np.ones(rows, bool)
    for fields in line.get("for", ()):
        same = [np.equal(getattr(op, name), value) for name, value in fields.items()]
        meant |= np.logical_and.reduce([np.broadcast_to(s, rows) for s in same])
    return meant


def _is_calibrated(folder: Path) -> bool:
    return (folder / "calibrated.npz").exists()


@lru_cache(maxsize=64)
def _time_model(folder: Path) -> TimeModel | CalibratedModel:
    if _is_calibrated(folder):
        from .calibrated import load_calibrated

        return load_calibrated(folder)
    return load_time_model(folder)


@lru_cache(maxsize=128)
def _operator(folder: Path) -> Learned:
    from .operator_model import load_operator

    return load_operator(folder)


@lru_cache(maxsize=16)
def _measured(folder: Path) -> Measured | None:
    path = folder / "measured.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        m, n, k, time = (np.asarray(arrays[key], float) for key in ("m", "n", "k", "time_s"))
    return Measured.of(Shapes(m, n, k, np.ones(len(m))), time)


@lru_cache(maxsize=4)
def _power(path: Path) -> PowerModel:
    from .power import load_power

    return load_power(path)


@lru_cache(maxsize=4)
def _configurations(folder: Path) -> ConfigModel:
    from .config_model import load

    return load(folder)


def open_bundle(path: Path | str | None = None) -> Bundle:
    """Open a model folder, by default the shipped one.

    Raises SpecError when the folder is not one, is damaged, or was written by a newer version.
    """
    folder = SHIPPED if path is None else Path(path)
    if not folder.is_dir():
        raise SpecError(f"--model: {folder} is not a folder; make one with `ridgecast train`")
    stamp = (folder / "card.json").stat().st_mtime_ns if (folder / "card.json").exists() else 0
    return _open(folder, stamp)


@lru_cache(maxsize=8)
def _open(folder: Path, stamp: int) -> Bundle:
    # a folder trained again under the same name must not serve the old models
    _time_model.cache_clear()
    _measured.cache_clear()
    _operator.cache_clear()
    card = read_card(folder / "card.json")
    if card.get("format") != FORMAT:
        raise SpecError(
            f"{folder}: model format {card.get('format')!r}, this version reads {FORMAT}; "
            "train it again or upgrade ridgecast"
        )
    try:
        entries = tuple(
            Entry(**{key: line[key] for key in Entry.__dataclass_fields__})
            for line in card["models"]
        )
    except (KeyError, TypeError) as error:
        raise SpecError(f"{folder}/card.json is damaged: {error!r}; train it again") from error
    return Bundle(folder, card, entries)


def _release(collection: str) -> tuple[int, ...]:
    """Numbers of the release that a collection states: (0, 5, 10) of lab/sglang-0.5.10/device."""
    stated = re.search(r"/[a-z]*-(\d+(?:\.\d+)*)", collection)
    return tuple(int(part) for part in stated.group(1).split(".")) if stated else ()
