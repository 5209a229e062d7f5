"""Words of plans: names of options for eyes, prices as people write them.

Owns both for every face. Searches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SpecError
from ..hardware import resolve

__all__ = ["option_name", "prices_of"]


def option_name(row: Mapping[str, Any]) -> str:
    """Name of an option: device, layout, formats, techniques, as far as they are not plain.

    >>> option_name({"hardware": "h100_sxm", "tp": 8, "pp": 1, "dp": 1, "ep": 1, "dtype": "fp8",
    ...              "kv_dtype": "", "technique": ""})
    'h100_sxm tp8 fp8'
    """
    sizes = " ".join(f"{n}{row[n]}" for n in ("tp", "pp", "dp", "ep") if row[n] != 1)
    words = [row["hardware"], sizes, row["dtype"], row["kv_dtype"] and f"kv {row['kv_dtype']}",
             row["technique"]]  # fmt: skip
    return " ".join(str(w) for w in words if w)


def prices_of(pairs: Sequence[str]) -> dict[str, float]:
    """Prices [USD per device and hour] by device, from DEVICE=USD. Raises SpecError for others."""
    out: dict[str, float] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        try:
            out[resolve(name).name] = float(value)
        except ValueError:
            sign = ""
        if not sign or not 0 <= out[resolve(name).name] < float("inf"):
            raise SpecError(f"--price: got {pair!r}, need DEVICE=USD, as h100_sxm=2.5")
    return out
