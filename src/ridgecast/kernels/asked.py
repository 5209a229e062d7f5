"""Kernel configurations from what people ask for: option values and KEY=VALUE pairs.

Knows the names of kernels and of their parameters; computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ..errors import SpecError, unknown_name
from ..units import key_values, number_or_text
from .config import ClblastConfig, LibraryConfig, SimtConfig, TensorConfig, TiledConfig

__all__ = ["build_config", "config_columns"]


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
        columns[key] = number_or_text(text)
    if columns and not kernel:
        raise SpecError(f"{', '.join(columns)}: say which kernel, for example --kernel tiled")
    return {"kernel": kernel, **columns} if kernel else {}


def build_config(columns: Mapping[str, str | int | float]) -> Any:
    """Build the kernel configuration from its columns; None where no kernel was named.

    Raises SpecError for an unknown kernel or parameter, with the nearest three names.
    """
    if not columns:
        return None
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
