"""What a pass must read from memory, whatever the caches of the device hold.

Owns the least time of one kernel of a decode step inside a network: weights, cached keys and
values, and states are used once a pass, and those of other layers push them out of the caches
meanwhile. Kernels measured alone, run after run, may find them there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import SpecError
from ..hardware import Hardware
from ..models.network import Amount
from ..ops import op_class
from ..ops.base import Work
from ..techniques.treatment import Storage

__all__ = ["STEP", "cold_seconds", "work_of"]

STEP = 256  # most positions of a decode step (verified drafts); more are a chunk of a prompt


def work_of(op: str, fields: Mapping[str, Any], words: Mapping[str, str]) -> Work:
    """Build the work of an operation from columns. Raises SpecError where none of it can be."""
    rows = max((np.size(v) for v in fields.values()), default=1)
    columns = {k: np.broadcast_to(np.asarray(v, np.float64), (rows,)) for k, v in fields.items()}
    made, bad, told = op_class(op).of_columns({**columns, **words}, rows)
    if bad.all():
        raise SpecError(str(told[0]))
    return made.work()


def cold_seconds(
    op: str, fields: Mapping[str, Any], words: Mapping[str, str], stored: Storage, device: Hardware
) -> Amount:
    """Seconds that what one run uses once a pass takes from memory; 0 for other work.

    A product's weights; a decode step's cache (elements by two formats that differ by one byte); a
    step's states.
    """
    if op == "gemm":
        cells = np.asarray(fields["n"], np.float64) * fields["k"] * fields.get("batch", 1)
        return cells * stored.bytes_each / device.memory.bandwidth
    if op == "attention":
        q, kv = (np.asarray(fields[name], np.float64) for name in ("q_len", "kv_len"))
        if not np.any((q <= STEP) & (q * 4 <= kv)):
            return 0.0
        wide, narrow = (work_of(op, fields, {**words, "kv_dtype": d}) for d in ("bf16", "int8"))
        elements = np.asarray(wide.read) - np.asarray(narrow.read)
        seconds = elements * stored.bytes_each / device.memory.bandwidth
        return np.where((q <= STEP) & (q * 4 <= kv), seconds, 0.0)
    if words.get("variant") == "step":
        return np.asarray(work_of(op, fields, words).moved) / device.memory.bandwidth
    return 0.0
