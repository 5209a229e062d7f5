"""The measured tables inside the installed package aiconfigurator-core.

Owns finding them; `aiconfigurator` converts them. The package is located but never imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...errors import MissingExtraError, NoDataError, unknown_name

__all__ = ["PREFIX", "CoreTable", "expand", "files", "tables"]

PREFIX = "aiconfigurator-core"


@dataclass(frozen=True, slots=True)
class CoreTable:
    """One GEMM table of the package: device folder, framework, version, file."""

    system: str
    framework: str
    version: str
    path: Path


def tables(root: Path | None = None) -> tuple[CoreTable, ...]:
    """GEMM tables that the installed package holds, sorted.

    Raises MissingExtraError when it is not installed.
    """
    found = files("*/gemm/*/*/gemm_perf.parquet", root)
    return tuple(CoreTable(p.parts[-5], p.parts[-3], p.parts[-2], p) for p in found)


def files(pattern: str, root: Path | None = None) -> list[Path]:
    """Files of the package by a pattern device/family/framework/version/name, sorted.

    Raises MissingExtraError when it is not installed.
    """
    return sorted(((root or _root()) / "systems" / "data").glob(pattern))


def _root() -> Path:
    spec = find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "aiconfigurator-core, which holds measured tables of many devices, is not installed: "
            "pip install ridgecast[silicon]"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def expand(text: str, root: Path | None = None) -> list[Path]:
    """Files meant by "aiconfigurator-core[:system[/framework[/version]]]".

    Raises MissingExtraError when the package is not installed, NoDataError when nothing matches.
    """
    wanted = [part for part in text.removeprefix(PREFIX).lstrip(":").split("/") if part]
    every = tables(root)
    chosen = [t for t in every if _matches(t, wanted)]
    if not chosen:
        systems = {t.system for t in every}
        what = "device in aiconfigurator-core"
        if wanted and wanted[0] not in systems:
            raise NoDataError(unknown_name(what, wanted[0], systems))
        shown = ", ".join(f"{t.framework}/{t.version}" for t in every if _matches(t, wanted[:1]))
        raise NoDataError(f"{text}: no such table; {wanted[0] if wanted else what} has: {shown}")
    return [t.path for t in chosen]


def _matches(table: CoreTable, wanted: Sequence[str]) -> bool:
    have = (table.system, table.framework, table.version)
    return all(ask in ("*", name) for ask, name in zip(wanted, have, strict=False))
