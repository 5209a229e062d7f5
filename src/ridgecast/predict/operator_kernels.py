"""Which kernel an engine runs: told by a measured table, chosen where nobody measured.

Engines pick among kernel families (Triton, CUTLASS, TensorRT-LLM, Marlin) by format, layout and
the network's router, and the families differ in time by more than most shapes do. Owns the names
of families, what a collection says of who runs what, and the choice for rows that it does not
hold: the family of that very structure, else what most structures of the formats run. Sees no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES

__all__ = ["FLAGS", "Kernels", "family_name", "family_of", "formats_of", "learn_kernels"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
# op -> the number that parts its kernels where it is above 1: vLLM runs other ones for experts
# that are spread over devices
FLAGS: Mapping[str, str] = {"moe": "ep"}
_FAMILIES = ("marlin", "oaitriton", "trtllm", "cutlass", "xpu", "triton")
_ENOUGH = 2  # structures of a format that outweigh what engines usually run for it
# What vLLM runs for weights of four bits under activations of 16. MXFP4 as its mxfp4.py chooses
# (quoted in issue 31085 of vllm-project/vllm): kernels of TensorRT-LLM on Blackwell of the data
# centre, OpenAI's Triton kernels on Hopper, Marlin elsewhere. Marlin for integers (assumed).
_INTEGER = "marlin"
_MXFP4 = {"hopper": "oaitriton", "blackwell": "trtllm"}


def family_of(source: str) -> str:
    """Kernel family that a table's kernel_source names; "" where it names none."""
    text = source.lower()
    if "marlin" in text:
        return "marlin"
    if "xpu" in text:
        return "xpu"
    last = text.rsplit("_", 1)[-1]
    found = [f for f in _FAMILIES if f in last] or [f for f in _FAMILIES if f in text]
    return found[0] if found else ("triton" if "fused_moe" in text else "")


@dataclass(frozen=True, slots=True)
class Kernels:
    """Who runs what in one collection.

    `names` of families; `most` (formats, flag) -> family of most structures, `own` (formats, flag)
    -> structure -> family where it is another, `seen` formats -> structures measured.
    """

    names: tuple[str, ...]
    architecture: str
    most: Mapping[tuple[tuple[str, ...], bool], str]
    own: Mapping[tuple[tuple[str, ...], bool], Mapping[tuple[float, ...], str]]
    seen: Mapping[tuple[str, ...], int]

    def choose(self, formats: tuple[str, ...], structure: F64, flag: F64) -> I64:
        """Index of `names` per row of structure [rows, fields]; `flag` above 1 parts kernels."""
        out = np.zeros(len(structure), np.int64)
        for on in (False, True):
            rows = np.flatnonzero((flag > 1.0) == on)
            if len(rows):
                out[rows] = self.names.index(self._usual(formats, on))
                for known, name in self.own.get((formats, on), {}).items():
                    same = (structure[rows] == np.asarray(known)).all(axis=1)
                    out[rows[same]] = self.names.index(name)
        return out

    def columns(self, chosen: I64) -> dict[str, F64]:
        """One column a family."""
        return {f"kernel={n}": (chosen == i).astype(float) for i, n in enumerate(self.names)}

    def format_columns(self, formats: tuple[str, ...], rows: int) -> dict[str, F64]:
        """One column for each formats that were measured together."""
        return {_told(f): np.full(rows, float(f == formats)) for f in self.seen}

    def _usual(self, formats: tuple[str, ...], on: bool) -> str:
        """Family for formats: of most structures, else what the engine is known to run."""
        found = self.most.get((formats, on))
        if found and self.seen.get(formats, 0) >= _ENOUGH:
            return found
        told = self._documented(formats)
        if told or found:
            return told or str(found)
        like = [f for f in self.seen if f[0] == formats[0] and (f, on) in self.most]
        like = like or [f for f in self.seen if (f, on) in self.most]
        if not like:
            return self.names[0]
        return self.most[(max(like, key=lambda f: self.seen[f]), on)]

    def _documented(self, formats: tuple[str, ...]) -> str:
        """Family that vLLM documents for four-bit weights, if this collection has it."""
        compute, weights = formats[0], formats[-1]
        if weights.startswith("int4"):
            name = _INTEGER
        elif weights == "mxfp4" and compute in ("bf16", "fp16"):
            name = _MXFP4.get(self.architecture.removesuffix("_ultra"), "marlin")
        else:
            return ""
        return next((n for n in (name, "marlin") if n in self.names), "")

    def to_card(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "names": list(self.names), "architecture": self.architecture,
            "most": [[list(f), on, name] for (f, on), name in self.most.items()],
            "own": [[list(f), on, list(s), name] for (f, on), some in self.own.items()
                    for s, name in some.items()],
            "seen": [[list(f), count] for f, count in self.seen.items()],
        }  # fmt: skip

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Kernels:
        """Undo `to_card`."""
        own: dict[tuple[tuple[str, ...], bool], dict[tuple[float, ...], str]] = {}
        for formats, on, structure, name in card["own"]:
            own.setdefault((tuple(formats), bool(on)), {})[tuple(structure)] = str(name)
        return cls(
            tuple(card["names"]), str(card["architecture"]),
            {(tuple(f), bool(on)): str(name) for f, on, name in card["most"]}, own,
            {tuple(f): int(count) for f, count in card["seen"]},
        )  # fmt: skip


def learn_kernels(
    kernel: Sequence[str], formats: Sequence[tuple[str, ...]], structure: F64, flag: F64,
    architecture: str,
) -> Kernels:  # fmt: skip
    """Learn who runs what from rows: `kernel` and `formats` a row, structure [rows, fields]."""
    names, kernels = np.unique(np.asarray(kernel, str), return_inverse=True)
    kinds = list(dict.fromkeys(formats))
    index = {f: i for i, f in enumerate(kinds)}
    code = np.array([index[f] for f in formats])
    shapes, shape = np.unique(structure, axis=0, return_inverse=True)
    keys = np.stack([code, flag > 1.0, shape.reshape(-1), kernels.reshape(-1)], axis=1)
    found, count = np.unique(keys, axis=0, return_counts=True)
    runs: dict[tuple[int, bool, int], tuple[int, int]] = {}  # the family with most rows
    for (f, on, s, k), rows in zip(found.tolist(), count.tolist(), strict=True):
        key = (f, bool(on), s)
        runs[key] = max(runs.get(key, (0, 0)), (rows, k))
    votes: dict[tuple[int, bool], dict[int, int]] = {}
    for (f, on, _), (_, k) in runs.items():
        ballot = votes.setdefault((f, on), {})
        ballot[k] = ballot.get(k, 0) + 1
    most = {key: max(ballot, key=lambda k: ballot[k]) for key, ballot in votes.items()}
    own: dict[tuple[tuple[str, ...], bool], dict[tuple[float, ...], str]] = {}
    for (f, on, s), (_, k) in runs.items():
        own.setdefault((kinds[f], on), {})[tuple(shapes[s].tolist())] = str(names[k])
    seen = {f: len({s for g, _, s in runs if g == i}) for i, f in enumerate(kinds)}
    told = {(kinds[f], on): str(names[k]) for (f, on), k in most.items()}
    # where the formats' usual family is the structure's own nothing needs to be kept
    short = Kernels(tuple(map(str, names)), architecture, told, {}, seen)
    kept = {
        key: {s: name for s, name in some.items() if name != short._usual(*key)}
        for key, some in own.items()
    }
    return Kernels(short.names, architecture, told, {k: v for k, v in kept.items() if v}, seen)


def _told(formats: tuple[str, ...]) -> str:
    return f"formats={'/'.join(formats)}"


def family_name(kernel: str, formats: Sequence[str]) -> str:
    """Name of a kernel family with the formats that it runs, as `operator_base` parts them."""
    return f"{kernel} {'/'.join(formats)}"


def formats_of(words: Sequence[str]) -> tuple[str, ...]:
    """Words that are formats, in their order."""
    return tuple(w for w in words if w in DTYPES)
