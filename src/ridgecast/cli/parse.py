"""From what people type to values: shapes, counterfactuals, configuration columns.

Pure functions; raises SpecError that says what was got and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import SpecError, unknown_name

if TYPE_CHECKING:
    from ..ops import Gemm

__all__ = [
    "OPS",
    "build_config",
    "check_op",
    "config_columns",
    "key_values",
    "parse_gemm",
    "parse_shape",
]

# name -> (module, class, the shape that the command line takes, one line of help)
OPS: dict[str, tuple[str, str, str, str]] = {
    "gemm": ("ridgecast.ops", "Gemm", "MxNxK", "(batched) matrix multiplication, 2 m n k flop"),
}
_NUMBER = re.compile(r"[+-]?\d+")


def check_op(name: str) -> str:
    """Return the name of a known operation; raise SpecError with the nearest three."""
    if name not in OPS:
        message = unknown_name("op", name, OPS, "`ridgecast ops` lists them.")
        raise SpecError(message)
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


def parse_gemm(shape: str, *, dtype: str, batch: int, layout: str) -> Gemm:
    """Build a Gemm from the command line; raises SpecError for what cannot be one."""
    from ..ops import Gemm

    m, n, k = parse_shape(shape).values()
    return Gemm(m, n, k, dtype=dtype, batch=batch, layout=layout)


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
