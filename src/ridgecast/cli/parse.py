"""From what people type to values: operations and their shapes.

Pure functions; raises SpecError that says what was got and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import SpecError, unknown_name
from ..units import key_values, number_or_text

if TYPE_CHECKING:
    from ..ops import Gemm, Op

__all__ = [
    "check_op",
    "parse_op",
    "parse_shape",
]

_NUMBER = re.compile(r"[+-]?\d+")


def check_op(name: str) -> str:
    """Return the name of a known operation; raise SpecError with the nearest three."""
    from ..ops import op_class

    op_class(name)
    return name


def parse_shape(text: str, names: tuple[str, ...] = ("m", "n", "k")) -> dict[str, int]:
    """Parse `4096x4096x512` into one size per name; sizes are checked by the op itself.

    >>> parse_shape("4096x4096x512")
    {'m': 4096, 'n': 4096, 'k': 512}
    """
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != len(names) or not all(_NUMBER.fullmatch(p) for p in parts):
        wanted = "x".join(name.upper() for name in names)
        raise SpecError(f"shape: got {text!r}, need {wanted} in whole numbers: 4096x4096x4096")
    return dict(zip(names, map(int, parts), strict=True))


def parse_op(
    name: str, words: Sequence[str], *, dtype: str | None, batch: int | None, layout: str | None
) -> Gemm | Op:
    """Build an operation from the command line's words: MxNxK for gemm, FIELD=VALUE for others.

    `dtype` and `batch` fill the fields of those names where the words do not. Raises SpecError for
    what cannot be one, naming the field.
    """
    from ..ops import Gemm, op_class

    cls = op_class(check_op(name))
    if cls is Gemm:
        if len(words) != 1:
            raise SpecError(f"shape: got {' '.join(words)!r}, need one MxNxK: 4096x4096x4096")
        m, n, k = parse_shape(words[0]).values()
        return Gemm(m, n, k, dtype=dtype or "bf16", batch=batch or 1, layout=layout or "tn")
    infos = cls.infos()
    given: dict[str, Any] = {}
    if layout is not None:
        raise SpecError(f"--layout: {name} has none; it is gemm's")
    odd = [word for word in words if "=" not in word]
    if odd:
        raise SpecError(f"{name}: got {odd[0]!r}, need FIELD=VALUE: {cls.example}")
    for key, text in key_values(words, f"{name} FIELD=VALUE").items():
        if key not in infos:
            raise SpecError(unknown_name(f"field of {name}", key, infos,
                                         f"`ridgecast ops {name}` shows them."))  # fmt: skip
        given[key] = (
            number_or_text(text) if infos[key].kind in ("size", "number", "share") else text
        )
    for key, value in (("dtype", dtype), ("batch", batch)):
        if value is not None and key in given:
            raise SpecError(f"{key}: given twice, as --{key} and as {key}=")
        if value is not None and key in infos:
            given[key] = value
        elif value is not None:
            raise SpecError(f"--{key}: {name} has no such field")
    missing = [n for n, i in infos.items() if n not in given and _needed(cls, n) and not i.like]
    if missing:
        raise SpecError(f"{name}: {', '.join(missing)} not given; for example: {cls.example}")
    return cls(**given)


def _needed(cls: Any, name: str) -> bool:
    import dataclasses

    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    return field.default is dataclasses.MISSING
