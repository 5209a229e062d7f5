"""Our own measurements: the shards that `ridgecast measure` writes, with all their columns.

Hot and cold runs, graph and stream launches, and other data patterns are different quantities of
one point; each becomes a collection of its own, so that nothing averages or trains across them.
"""

from __future__ import annotations

import numpy as np

from ..tables import Table, length
from . import plain
from .base import Importer, Request

__all__ = ["IMPORTER"]


def convert(table: Table, request: Request) -> Table:
    """Canonical rows; failed and refused ones stay, not valid, with their reason.

    Raises SpecError for a newer schema than this version reads.
    """
    out = plain.convert(table, request)
    parts = [out["collection"], out["cache"], out["launch"]]
    if "pattern" in out:
        parts.append(np.where(out["pattern"] == "normal", "", out["pattern"]).astype(object))
    names = np.empty(length(out), dtype=object)
    names[:] = ["/".join(part for part in row if part) for row in zip(*parts, strict=True)]
    out["collection"] = names
    return out


IMPORTER = Importer(
    name="ridgecast_shards",
    what="our own measurements (ridgecast measure --out)",
    needs=("schema_version", "environment", "point", "attempt", "status", "m", "n", "k"),
    convert=convert,
)
