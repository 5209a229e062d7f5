"""Boosted trees of LightGBM, and a compiled walk through them for large batches.

Owns the text form of the trees and their evaluation: by LightGBM, or, after `compile_walk`, by a
loop that numba compiles. Both give the same sums, bit for bit. Knows nothing of what the columns
mean.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from .trees_walk import walk

__all__ = ["Trees", "compile_walk", "pack_booster", "slim", "unpack_booster"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
_UNUSED = (
    "split_gain", "internal_value", "internal_weight", "internal_count", "leaf_weight",
    "leaf_count", "tree_sizes",
)  # fmt: skip
_LEAF = 2**31 - 1  # a cut that no row passes
_COLUMNS = 255  # the last column that a node can name
_OTHERWISE = re.compile(r"^(average_output|is_linear=1)", re.MULTILINE)
_LARGE = 256  # rows from which on packing and walking pay


@dataclass(frozen=True)
class _Packed:
    """Trees as arrays, one after another; a node's children lie side by side, left first.

    `nodes` [nodes] hold cut << 32 | left child << 8 | column, where the cut is a float32 as an
    integer of the same order and children count from their tree's root; a leaf is its own child.
    `values` [nodes] of leaves, `roots` [trees + 1] where each begins, `depths` [trees].
    """

    nodes: I64
    values: F64
    roots: I64
    depths: I64


@dataclass(frozen=True)
class Trees:
    """Sum of trees: `text` is LightGBM's, `booster` what it makes of it."""

    text: str
    booster: Any

    @classmethod
    def of(cls, text: str) -> Trees:
        """Read model text. Raises SpecError for text that is none."""
        import lightgbm as lgb

        try:
            return cls(text, lgb.Booster(model_str=text))
        except lgb.basic.LightGBMError as error:
            raise SpecError(f"model text cannot be read as LightGBM: {error}") from error

    def predict(self, x: F32, threads: int = 1) -> F64:
        """Value per row of x [rows, columns], all finite."""
        p = self._packed if _walk and len(x) >= _LARGE else None
        if p is None:
            return np.asarray(self.booster.predict(x, num_threads=threads), np.float64)
        out = np.zeros(len(x))
        _walk[0](_ordered(x), p.nodes, p.values, p.roots, p.depths, out)
        return out

    @cached_property
    def _packed(self) -> _Packed | None:
        """None for what the walk does not know: categories, missing values, other sums."""
        blocks = self.text.split("end of trees", 1)[0].split("\nTree=")[1:]
        trees = [dict(line.split("=", 1) for line in b.splitlines() if "=" in line) for b in blocks]
        columns = re.search(r"^max_feature_idx=(\d+)$", self.text, re.MULTILINE)
        odd = any(int(d) & ~2 for t in trees for d in t.get("decision_type", "").split())
        if odd or columns is None or int(columns[1]) > _COLUMNS or _OTHERWISE.search(self.text):
            return None
        parts = [_pack(tree) for tree in trees]
        roots = np.cumsum([0, *(len(nodes) for nodes, _, _ in parts)])
        return _Packed(
            np.concatenate([nodes for nodes, _, _ in parts]),
            np.concatenate([values for _, values, _ in parts]),
            roots, np.array([depth for _, _, depth in parts]),
        )  # fmt: skip


def _pack(tree: dict[str, str]) -> tuple[I64, F64, int]:
    """Nodes, values and depth of one tree of LightGBM's text; `~i` there is leaf i."""
    leaves = np.array(tree["leaf_value"].split(), float)
    inner = [tree.get(name, "").split() for name in ("left_child", "right_child", "split_feature")]
    left, right, column = (np.array(words, np.int64) for words in inner)
    exact = np.array(tree.get("threshold", "").split(), float)
    with np.errstate(over="ignore"):
        cut = exact.astype(np.float32)
    above = cut.astype(float) > exact  # x <= cut in single precision means the same as x <= exact
    cut[above] = np.nextafter(cut[above], np.float32(-np.inf))
    order = _ordered(cut).astype(np.int64)
    told, depth = [0 if len(left) else ~0], [0]
    nodes, values = list[int](), list[float]()
    for at, node in enumerate(told):  # grows as it goes: breadth first
        if node < 0:
            nodes.append(_LEAF << 32 | at << 8)
            values.append(leaves[~node])
            continue
        nodes.append(int(order[node]) << 32 | len(told) << 8 | int(column[node]))
        values.append(0.0)
        told += [int(left[node]), int(right[node])]
        depth += [depth[at] + 1] * 2
    return np.array(nodes, np.int64), np.array(values), max(depth)


def _ordered(x: F32) -> I32:
    """Integers in the order of finite single-precision numbers (IEEE 754: sign and magnitude)."""
    bits = np.ascontiguousarray(x + np.float32(0.0), np.float32).view(np.int32)  # -0 becomes 0
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


_walk: list[Callable[..., None]] = []  # one, once `compile_walk` was called


def compile_walk() -> bool:
    """Have all further large batches walk compiled trees; False where numba is not installed.

    Compiling takes a second, once on a machine; after that it is what importing numba takes.
    """
    if not _walk:
        try:
            njit: Any = import_module("numba").njit
        except ImportError:
            return False
        try:
            _walk.append(njit(nogil=True, cache=True)(walk))
        except RuntimeError:  # no folder that compiled code could be kept in
            _walk.append(njit(nogil=True)(walk))
    return True


def slim(text: str) -> str:
    """LightGBM model text without the fields that prediction does not read, leaves to 1e-4.

    The tree text shrinks to a third; a prediction moves by less than 0.1 %.
    """
    kept: list[str] = []
    for line in text.split("end of trees", 1)[0].splitlines():
        key, _, value = line.partition("=")
        if key in _UNUSED:
            continue
        digits = {"threshold": ".9g", "leaf_value": ".4f"}.get(key)
        if digits:
            kept.append(f"{key}=" + " ".join(format(float(v), digits) for v in value.split()))
        else:
            kept.append(line)
    return "\n".join(kept) + "\nend of trees\n"


def pack_booster(text: str) -> bytes:
    """Compress model text for disk (xz: model text is highly repetitive)."""
    return lzma.compress(text.encode(), preset=9)


def unpack_booster(data: bytes) -> str:
    """Undo `pack_booster`. Raises SpecError when the bytes are not xz text."""
    try:
        return lzma.decompress(data).decode()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise SpecError(f"model.txt.xz is damaged: {error}") from error
