"""Checked access to a config.json: whole numbers, flags and words, with the field path in errors.

Owns what a bad value is told. Knows no architecture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SpecError, nearest, unknown_name

__all__ = ["Fields"]

_LARGEST = 2**40
_MOST_LAYERS = 100_000  # readers look at each; the deepest published networks have some hundreds
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one (part of a) config.json; `path` is where it lies, for messages."""

    data: Mapping[str, Any]
    path: str = "config"

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self.data.get(name) is not None

    def whole(self, *names: str, default: int | None = None, low: int = 1) -> int:
        """Read a whole number of at least `low` under the first of `names` that is there.

        Raises SpecError where it is missing and has no default, or is anything else.
        """
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            high = _MOST_LAYERS if name in _LAYERS else _LARGEST
            whole = isinstance(value, int | float) and not isinstance(value, bool)
            if not whole or not low <= value <= high or value % 1:
                limit = f", at most {high}" if whole and value > high else ""
                raise SpecError(
                    f"{self.path}.{name}: got {value!r}, need a whole number of at least "
                    f"{low}{limit}"
                )
            return int(value)
        if default is None:
            near = self._near(names[0])
            raise SpecError(f"{self.path}.{names[0]}: not given; need a whole number{near}")
        return default

    def flag(self, name: str, default: bool = False) -> bool:
        """Read a yes or no."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool | int):
            raise SpecError(f"{self.path}.{name}: got {value!r}, need true or false")
        return bool(value)

    def word(self, *names: str, default: str = "") -> str:
        """Read a word under the first of `names` that is there."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise SpecError(f"{self.path}.{name}: got {value!r}, need a word")
            return value
        return default

    def row(self, name: str, length: int) -> Sequence[Any] | None:
        """Read a list with an entry for each of `length` layers; None where there is none or empty.

        Longer lists are cut: some configs list layers of prediction modules too.
        """
        value = self.data.get(name)
        if value is None or value == []:
            return None
        if not isinstance(value, list) or len(value) < length:
            got = f"{len(value)} entries" if isinstance(value, list) else repr(value)
            raise SpecError(f"{self.path}.{name}: got {got}, need one for each of {length} layers")
        return value[:length]

    def listed(self, name: str) -> list[int]:
        """Read a list of whole numbers (layers); empty where there is none."""
        value = self.data.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
            raise SpecError(f"{self.path}.{name}: got {value!r}, need a list of whole numbers")
        return value

    def need(self, name: str, ok: bool, told: str) -> None:
        """Raise SpecError for a field that contradicts others."""
        if not ok:
            raise SpecError(f"{self.path}.{name}: got {self.data.get(name)!r}, {told}")

    def activation(self, *names: str, default: str = "silu") -> str:
        """Read an activation function by its common spellings. Raises SpecError for others."""
        word = self.word(*names, default=default)
        known = {"silu": "silu", "swish": "silu", "swiglu": "silu", "relu": "relu",
                 "relu2": "relu2", "gelu": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu",
                 "gelu_pytorch_tanh": "gelu", "quick_gelu": "gelu"}  # fmt: skip
        if word not in known:
            raise SpecError(unknown_name(f"{self.path}.{names[0]}", word, known))
        return known[word]

    def _near(self, name: str) -> str:
        close = ", ".join(nearest(name, [k for k in self.data if not k.startswith("_")]))
        return f"; fields with the nearest names: {close}" if close else ""
