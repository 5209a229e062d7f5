"""The learned time of one operation on one device: physics times a learned ratio.

    t = t_analytic * exp(f(x))

Owns the fit to measured rows of one operation, device and collection, where a row lies relative
to them, and the model's folder: `card.json`, LightGBM text (xz) and npz. Features and analytic
times are those of `operator_features`, the learned halves and intervals those of `sweep_parts`.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from ..errors import NoDataError, RidgecastError, SpecError
from ..hardware import Hardware
from ..kernels.bound import Cache
from ..ops import op_class
from ..ops.base import Op
from ..store.tables import Table
from .operator_base import base_time
from .operator_features import Known, features_of, known, terms_of
from .operator_kernels import FLAGS, Kernels, family_name, family_of, formats_of
from .operator_rows import op_parts, word_fields
from .sweep_parts import PLACES, Head, codes_of
from .trees import pack_booster, unpack_booster

if TYPE_CHECKING:
    from .collective_model import CollectiveModel

__all__ = [
    "CARD_VERSION",
    "COMMON",
    "GROUPS",
    "NEW_BEYOND",
    "OperatorModel",
    "OperatorRows",
    "as_seen",
    "is_rare",
    "kernel_keys",
    "load_operator",
    "numbers_of",
    "operator_rows",
    "ranges_of",
    "stack_columns",
    "width_of",
]  # fmt: skip

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
LEAST_ROWS = 36  # two devices' counts of 23 sizes, a fifth of them held out
CARD_VERSION = 1
RARE = len(PLACES)
"""Place of a new structure whose formats fewer than COMMON structures were measured with."""
NEW_BEYOND = RARE + 1
"""Place of a new structure with a number beyond those measured."""
COMMON = 4
# op -> (fields that make its structure, further fields that part groups held out together)
GROUPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attention": (("q_heads", "kv_heads", "head_dim"), ("q_len", "kv_len")),
    "moe": (("hidden", "inter", "experts", "top_k"), ()),
    "collective": (("kind", "gpus"), ("bytes",)),
}


@dataclass(frozen=True, slots=True)
class OperatorRows:
    """Measured rows of one operation and device, ready to learn from.

    `features` and `terms` of the analytic time by name [rows], `bound` [s], `time` [s] measured,
    `structure` and `group` codes per row, `sizes` [rows, numeric fields] and `words` (one tuple for
    each value of `word_of`).
    """

    features: dict[str, F64]
    terms: dict[str, F64]
    bound: F64
    time: F64
    structure: I64
    group: I64
    sizes: F64
    words: tuple[tuple[str, ...], ...]
    word_of: I64
    positions: I64
    kernel: npt.NDArray[np.str_]  # family that ran a row; "" where the table does not say


def numbers_of(cls: type[Op]) -> list[str]:
    """Name the fields that hold numbers."""
    return [n for n, i in cls.infos().items() if i.kind in ("size", "number", "share")]


def _sizes(op: Op, rows: int) -> F64:
    cells = [np.broadcast_to(np.asarray(getattr(op, n), np.float64), (rows,))
             for n in numbers_of(type(op))]  # fmt: skip
    return np.stack(cells, axis=1) if cells else np.zeros((rows, 0))


def _words(op: Op) -> tuple[str, ...]:
    return tuple(str(getattr(op, n)) for n in word_fields(type(op)))


def _variant(cls: type[Op], words: tuple[str, ...]) -> tuple[str, ...]:
    """Words that are no formats."""
    infos = cls.infos()
    return tuple(w for n, w in zip(word_fields(cls), words, strict=True)
                 if infos[n].kind != "format")  # fmt: skip


def ranges_of(rows: OperatorRows, cls: type[Op]) -> list[dict[str, Any]]:
    """Range of each number, by the words that are no formats; [] where there is one such set."""
    variants = [_variant(cls, w) for w in rows.words]
    kinds = list(dict.fromkeys(variants))
    if len(kinds) < 2:
        return []
    of = np.array([kinds.index(v) for v in variants])[rows.word_of]
    parts = [rows.sizes[of == i] for i in range(len(kinds))]
    return [
        {"words": list(kind), "low": part.min(axis=0).tolist(), "high": part.max(axis=0).tolist()}
        for kind, part in zip(kinds, parts, strict=True) if len(part)
    ]  # fmt: skip


def width_of(word: str) -> str:
    """Kind and bits of a format (bf16 is as wide as fp16); other words as they are."""
    d = DTYPES.get(word)
    return word if d is None else f"{d.kind}{d.bits_with_scales:g}"


def operator_rows(table: Table, name: str, hardware: Hardware) -> OperatorRows:
    """Turn measured rows (an operation's fields and time_s) into features and groups.

    Raises NoDataError when no row is usable; rows that the operation refuses, or that
    are marked as not valid, are left out.
    """
    cls = op_class(name)
    time = np.asarray(table["time_s"], np.float64)
    good = np.isfinite(time) & (time > 0)
    if "valid" in table:
        good &= np.asarray(table["valid"], np.float64) == 1.0
    usable = np.flatnonzero(good)
    if not len(usable):
        raise NoDataError(f"no row of {name} on {hardware.name} is valid")
    parts: list[tuple[dict[str, F64], dict[str, F64], F64, F64, I64]] = []
    words: list[tuple[str, ...]] = []
    for part in op_parts(cls, table, usable):
        if part.op is None or part.bad.all():
            continue
        keep, op = ~part.bad, part.op.settled()
        k = known(op, len(part.rows), hardware)
        found = {n: v[keep] for n, v in features_of(op, k, hardware).items()}
        terms = {n: v[keep] for n, v in terms_of(k, hardware, op).items()}
        sizes = _sizes(op, len(part.rows))[keep]
        parts.append((found, terms, k.bound[keep], sizes, part.rows[keep]))
        words.append(_words(part.op))
    if not parts:
        raise NoDataError(f"no row of {name} on {hardware.name} can be learned from")
    counts = [len(rows) for *_, rows in parts]
    features = stack_columns([found for found, *_ in parts], counts)
    terms = stack_columns([term for _, term, *_ in parts], counts)
    word_of = np.repeat(np.arange(len(parts)), counts)
    bound = np.concatenate([b for _, _, b, _, _ in parts])
    sizes = np.concatenate([s for _, _, _, s, _ in parts])
    at = np.concatenate([rows for *_, rows in parts])
    kinds = {n: i for i, n in enumerate(numbers_of(cls))}
    texts = {n: i for i, n in enumerate(word_fields(cls))}
    labels = np.array([list(w) for w in words], dtype=object)

    def column(field: str) -> npt.NDArray[Any]:
        if field in kinds:
            return sizes[:, kinds[field]]
        return labels[word_of, texts[field]].astype(str)

    inner, outer = GROUPS.get(name, ((), tuple(kinds)))
    structure = codes_of([column(f) for f in inner]) if inner else np.zeros(len(at), np.int64)
    group = codes_of([column(f) for f in (*inner, *outer)])
    source = np.full(len(at), "")
    if name in FLAGS and "kernel_source" in table:
        written = np.asarray(table["kernel_source"])[at].astype(str)
        told, back = np.unique(written, return_inverse=True)
        source = np.array([family_of(t) for t in told.tolist()])[back.reshape(-1)]
    return OperatorRows(
        features, terms, bound, time[at], structure, group, sizes, tuple(words), word_of, at, source
    )


def stack_columns(parts: Sequence[Mapping[str, F64]], counts: Sequence[int]) -> dict[str, F64]:
    """Columns of several parts on top of each other; 0 where a part lacks one."""
    names = list(dict.fromkeys(n for part in parts for n in part))
    pairs = list(zip(parts, counts, strict=True))
    return {n: np.concatenate([p[n] if n in p else np.zeros(c) for p, c in pairs]) for n in names}


@dataclass(frozen=True, slots=True)
class OperatorModel:
    """Predicts one operation on the device that it was fitted on.

    `names` are the features' names, `coefficients` those of the analytic time's terms, `domain`
    the range of each numeric field, the words and the structures seen.
    """

    op: str
    hardware: str
    collection: str
    names: tuple[str, ...]
    coefficients: Mapping[str, float]
    head: Head
    domain: Mapping[str, Any]
    card: Mapping[str, Any]
    kernels: Kernels | None = None

    def predict(
        self, op: Op, k: Known, hardware: Hardware, level: float
    ) -> tuple[F64, F64, F64, I64]:
        """Time, low and high [s] [rows] and the index of PLACES; `k` is of this very device."""
        op = op.settled()
        x = self._columns(op, k, hardware)
        place = self.place_of(_sizes(op, k.rows), k.bound, _words(op))
        apart = self._apart(op, k.rows)
        place[apart] = self._beyond(place[apart])
        far = self.outside(_sizes(op, k.rows))
        if far.any():  # beyond what was measured the utilisation of the edge is kept
            x[far] = self.edge_columns(op, k.rows, hardware, k.cache)[far]
        value = self.head.predict(x, self.learned(place, far))
        low, high = self.limits(value, place, _words(op), level)
        time = self.base(k, hardware, op) * np.exp(value)
        return (time, time * np.exp(np.minimum(low, 0.0)), time * np.exp(np.maximum(high, 0.0)),
                place)  # fmt: skip

    def _columns(self, op: Op, k: Known, hardware: Hardware) -> F64:
        """Features [rows, names]; those that training did not see are left out."""
        found = {**features_of(op, k, hardware), **self._alike(op, k.rows)}
        found |= self.kernel_columns(_words(op), _sizes(op, k.rows))
        zero = np.zeros(k.rows)
        return np.stack([found.get(n, zero) for n in self.names], axis=1)

    def edge_columns(self, op: Op, rows: int, hardware: Hardware, cache: Cache = "hot") -> F64:
        """Features [rows, names] of the operation moved into the measured range."""
        edge = self._at_edge(op, rows)
        return self._columns(edge, known(edge, rows, hardware, cache), hardware)

    def _at_edge(self, op: Op, rows: int) -> Op:
        """Return the operation with each number moved into the measured range.

        Where features describe the device's own part of a layer (kernels are known), numbers of
        the whole layer stay: its part is mostly within the range though the layer is not.
        """
        near, whole = copy(op), GROUPS[self.op][0] if self.kernels else ()
        for i, name in enumerate(self.domain["numbers"]):
            if name in whole:
                continue
            wide = np.broadcast_to(np.asarray(getattr(op, name), np.float64), (rows,))
            low, high = self.domain["low"][i], self.domain["high"][i]
            object.__setattr__(near, name, np.clip(wide, low, high))
            for cached in [key for key in vars(near) if key not in op.infos()]:
                object.__delattr__(near, cached)
        return near

    def limits(
        self, value: F64, place: I64, words: tuple[str, ...], level: float
    ) -> tuple[F64, F64]:
        """Log limits about each value [rows]: a new structure is no surer beyond than within."""
        intervals = self.head.intervals
        low, high = intervals.limits(value, self.calibrated(place), level)
        new = place == NEW_BEYOND
        if new.any() and self.kernels is not None:
            within = np.full(int(new.sum()), RARE if is_rare(self.kernels, words) else 1)
            least, most = intervals.limits(value[new], self.calibrated(within), level)
            low[new], high[new] = np.minimum(low[new], least), np.maximum(high[new], most)
        return low, high

    def _beyond(self, place: I64) -> I64:
        """Places of rows that turn out to lie beyond what was measured."""
        if self.kernels is None:
            return np.full(len(place), 2)
        return np.where((place == 0) | (place == 2), 2, NEW_BEYOND)

    def learned(self, place: I64, far: npt.NDArray[np.bool_]) -> I64:
        """Places whose share of trees answers: inside's at the edge, a new structure's beyond."""
        edge = far if self.kernels is None else far & (place == 2)
        return self.calibrated(np.where(edge, 0, np.where(place == NEW_BEYOND, 1, place)))

    def calibrated(self, place: I64) -> I64:
        """Places as they are, or that of a new structure where none was held out at theirs."""
        return np.where(place < len(self.head.share), place, 1)

    def kernel_columns(self, words: tuple[str, ...], sizes: F64) -> dict[str, F64]:
        """Features of the kernel family that is taken to run rows of `words` [rows, numbers]."""
        if self.kernels is None:
            return {}
        structure, flag = kernel_keys(self.op, sizes)
        formats = as_seen(self.kernels, words)
        return {
            **self.kernels.format_columns(formats, len(sizes)),
            **self.kernels.columns(self.kernels.choose(formats, structure, flag)),
        }

    def base(self, k: Known, hardware: Hardware, op: Op) -> F64:
        """Analytic time [s] [rows] with this device's coefficients."""
        family = self.family(_words(op), _sizes(op, k.rows))
        return base_time(terms_of(k, hardware, op), family, self.coefficients)

    def family(self, words: tuple[str, ...], sizes: F64) -> npt.NDArray[np.str_]:
        """Kernel family and formats that rows of `words` [rows, numbers] are taken to run."""
        if self.kernels is None:
            return np.full(len(sizes), "")
        formats = as_seen(self.kernels, words)
        chosen = self.kernels.choose(formats, *kernel_keys(self.op, sizes))
        return np.array([family_name(n, formats) for n in self.kernels.names])[chosen]

    def _alike(self, op: Op, rows: int) -> dict[str, F64]:
        """Features of measured formats as wide as those of `op` that were not measured."""
        out: dict[str, F64] = {}
        for name, info in op.infos().items():
            value = getattr(op, name)
            if info.kind == "format" and f"{name}={value}" not in self.names:
                same = [d for d in DTYPES if d != value and width_of(d) == width_of(value)]
                out |= {f"{name}={d}": np.ones(rows) for d in same}
        return out

    def knows(self, op: Op) -> bool:
        """Whether the words of `op` were measured together; formats of one width count as one."""
        asked = tuple(width_of(w) for w in _words(op))
        return asked in {tuple(width_of(v) for v in w) for w in self.domain["words"]}

    def reaches(self, op: Op) -> npt.NDArray[np.bool_]:
        """Rows of `op` that the measured calls could be.

        Collectives of one kind count as engines' own kernels, which map the others' memory: where
        none was measured between nodes, none goes there (vLLM's custom all-reduce, for one, refuses
        to). Libraries are measured in several kinds, and have `collective_model`.
        """
        if self.op != "collective" or not self.hardware:
            return np.asarray(True)
        near = np.asarray(op.gpus_per_node, np.float64)  # type: ignore[attr-defined]
        total = np.asarray(op.gpus, np.float64)  # type: ignore[attr-defined]
        high = dict(zip(self.domain["numbers"], self.domain["high"], strict=True))
        return (total <= near) | (high["gpus"] > high["gpus_per_node"])

    def place_of(self, sizes: F64, bound: F64, words: tuple[str, ...] = ()) -> I64:
        """Index of PLACES per row, from the numeric fields [rows, fields] and the bound [s].

        Where kernels are known, a new structure of `words` that few structures were measured with
        is at RARE, and one that is beyond in NEW_BEYOND. Sizes that each were seen can make more
        work together than any: that is beyond, too.
        """
        out = np.zeros(len(sizes), np.int64)
        inner = [n for n in GROUPS.get(self.op, ((), ()))[0] if n in self.domain["numbers"]]
        if inner:
            at = [self.domain["numbers"].index(n) for n in inner]
            seen = {tuple(s) for s in self.domain["structures"]}
            keys, back = np.unique(sizes[:, at], axis=0, return_inverse=True)
            new = np.array([tuple(key) not in seen for key in keys.tolist()], bool)
            rare = self.kernels is not None and bool(words) and is_rare(self.kernels, words)
            out[new[back.reshape(-1)]] = RARE if rare else 1
        least, most = self.domain["bound"]
        far = self.outside(sizes) | (bound < 0.999 * least) | (bound > 1.001 * most)
        out[far] = self._beyond(out[far])
        return out

    def outside(self, sizes: F64) -> npt.NDArray[np.bool_]:
        """Rows with a number outside the measured range."""
        low, high = np.asarray(self.domain["low"]), np.asarray(self.domain["high"])
        return np.asarray(((sizes < low) | (sizes > high)).any(axis=1), bool)

    def _apart(self, op: Op, rows: int) -> npt.NDArray[np.bool_]:
        """Rows with a number that was not measured together with the variant and flags of `op`."""
        ranges = self.domain.get("ranges", ())
        own = [r for r in ranges if tuple(r["words"]) == _variant(type(op), _words(op))]
        sizes, out = _sizes(op, rows), np.zeros(rows, bool)
        for r in own:
            out |= ((sizes < np.asarray(r["low"])) | (sizes > np.asarray(r["high"]))).any(axis=1)
        return out

    def save(self, folder: Path) -> None:
        """Write card.json, model.txt.xz and smooth.npz."""
        folder.mkdir(parents=True, exist_ok=True)
        state, arrays = self.head.to_state()
        named: dict[str, Any] = arrays
        card = {
            "card_version": CARD_VERSION, "op": self.op, "hardware": self.hardware,
            "collection": self.collection, "names": list(self.names),
            "coefficients": dict(self.coefficients), "head": state,
            "domain": dict(self.domain), **self.card,
            **({"kernels": self.kernels.to_card()} if self.kernels else {}),
        }  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **named)
        text = (json.dumps(card, allow_nan=False) + "\n").encode()
        files = (("model.txt.xz", pack_booster(self.head.text)), ("smooth.npz", buffer.getvalue()),
                 ("card.json", text))  # fmt: skip
        for name, data in files:
            draft = folder / f".{name}.{os.getpid()}"
            draft.write_bytes(data)
            draft.replace(folder / name)


def kernel_keys(op: str, sizes: F64) -> tuple[F64, F64]:
    """Structure [rows, fields] and the number that parts kernels [rows]."""
    numbers = numbers_of(op_class(op))
    return sizes[:, [numbers.index(n) for n in GROUPS[op][0]]], sizes[:, numbers.index(FLAGS[op])]


def is_rare(kernels: Kernels, words: tuple[str, ...]) -> bool:
    """Whether fewer than COMMON structures were measured with the formats of `words`."""
    return kernels.seen.get(as_seen(kernels, words), 0) < COMMON


def as_seen(kernels: Kernels, words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the formats of `words`, or measured ones of the same widths."""
    asked = formats_of(words)
    if asked in kernels.seen:
        return asked
    wide = tuple(map(width_of, asked))
    return next((f for f in kernels.seen if tuple(map(width_of, f)) == wide), asked)


_DOMAIN = ("numbers", "low", "high", "bound", "words", "structures")


def load_operator(folder: Path) -> OperatorModel | CollectiveModel:
    """Undo `save` of either model. Raises SpecError that names what is damaged."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        if card["card_version"] != CARD_VERSION:
            raise SpecError(f"{folder}: card_version {card['card_version']}, need {CARD_VERSION}")
        if "form" in card:
            from .collective_model import FORM, from_card

            if card["form"] != FORM:
                raise SpecError(f"{folder}: a model of form {card['form']!r}, known is {FORM!r}")
            with np.load(folder / "smooth.npz", allow_pickle=False) as arrays:
                return from_card(card, {k: arrays[k] for k in arrays.files})
        text = unpack_booster((folder / "model.txt.xz").read_bytes())
        with np.load(folder / "smooth.npz", allow_pickle=False) as arrays:
            head = Head.from_state(card["head"], {k: arrays[k] for k in arrays.files}, text)
        domain = {key: card["domain"][key] for key in _DOMAIN}
        domain["ranges"] = card["domain"].get("ranges", [])  # older models have none
        asked = (card["op"], card["hardware"], card["collection"], tuple(card["names"]))
        coefficients = dict(card["coefficients"])
        kernels = Kernels.from_card(card["kernels"]) if "kernels" in card else None
    except (OSError, KeyError, TypeError, ValueError, BadZipFile) as error:
        if isinstance(error, RidgecastError):
            raise
        raise SpecError(
            f"operator model {folder} is damaged ({type(error).__name__}: {error}); train it again"
        ) from error
    own = (
        "op",
        "hardware",
        "collection",
        "names",
        "coefficients",
        "head",
        "domain",
        "card_version",
        "kernels",
    )
    facts = {k: v for k, v in card.items() if k not in own}
    return OperatorModel(*asked, coefficients, head, domain, facts, kernels)
