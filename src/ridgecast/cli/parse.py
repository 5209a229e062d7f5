"""From what people type to values: shapes, counterfactuals, configuration columns.

Pure functions; raises SpecError that says what was got and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import SpecError, unknown_name

if TYPE_CHECKING:
    from ..ops import Gemm, Op

__all__ = [
    "build_config",
    "check_op",
    "config_columns",
    "key_values",
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
        given[key] = _number(text) if infos[key].kind in ("size", "number", "share") else text
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


def key_values(pairs: Iterable[str], option: str) -> dict[str, str]:
    """Split `field=value` pairs of a repeatable option; a pair twice is refused.

    >>> key_values(["memory.bandwidth=+20%"], "--what-if")
    {'memory.bandwidth': '+20%'}
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise SpecError(f"{option}: got {pair!r}, need FIELD=VALUE: {option} field=+20%")
        if key in found:
            raise SpecError(f"{option}: {key!r} is given twice")
        found[key] = value
    return found


def config_columns(
    kernel: str | None, sizes: Mapping[str, int | None], pairs: Iterable[str] = ()
) -> dict[str, str | int | float]:
    """Collect the configuration columns that were given: the kernel, tile sizes, KEY=VALUE pairs.

    Numbers among the pairs become numbers. Raises SpecError for a tile without a kernel.
    """
    columns: dict[str, str | int | float] = {k: v for k, v in sizes.items() if v is not None}
    for name, text in key_values(pairs, "--config").items():
        key = name.lower()
        if key in columns:
            raise SpecError(f"--config {key}: also given as --{key.replace('_', '-')}")
        columns[key] = _number(text)
    if columns and not kernel:
        raise SpecError(f"{', '.join(columns)}: say which kernel, for example --kernel tiled")
    return {"kernel": kernel, **columns} if kernel else {}


def build_config(columns: Mapping[str, str | int | float]) -> Any:
    """Build the kernel configuration from its columns; None where no kernel was named.

    Raises SpecError for an unknown kernel or parameter, with the nearest three names.
    """
    if not columns:
        return None
    from dataclasses import fields

    from ..kernels import ClblastConfig, LibraryConfig, SimtConfig, TensorConfig, TiledConfig

    kinds = (LibraryConfig, TiledConfig, SimtConfig, TensorConfig, ClblastConfig)
    classes = {kind.kernel: kind for kind in kinds}
    kernel = str(columns["kernel"])
    if kernel not in classes:
        allowed = f"Allowed: {', '.join(classes)}."
        raise SpecError(unknown_name("kernel", kernel, classes, allowed))
    names = {f.name.lower(): f.name for f in fields(classes[kernel])}
    values: dict[str, Any] = {}
    for key, value in columns.items():
        if key == "kernel":
            continue
        if key.lower() not in names:
            raise SpecError(unknown_name(f"parameter of kernel {kernel}", key, names))
        values[names[key.lower()]] = value
    return classes[kernel](**values)


def _number(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
