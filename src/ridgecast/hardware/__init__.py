"""What a machine is: units, rates, memory levels, links, power, price; every number sourced.

Owns the frozen specs, the TOML catalogue (`catalog/`, one file a device) and counterfactual
devices (`what_if`). Must not import any room but `units`, `dtypes` and `errors`; knows no
operation, kernel or time.
"""

from .catalog import get, load, loads, names, origin_of, reference_of, resolve
from .describe import compare, describe
from .spec import Hardware, Link, MemoryLevel, SmLimits, Source

__all__ = [
    "Hardware",
    "Link",
    "MemoryLevel",
    "SmLimits",
    "Source",
    "compare",
    "describe",
    "get",
    "load",
    "loads",
    "names",
    "origin_of",
    "reference_of",
    "resolve",
]
