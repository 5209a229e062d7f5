"""What leaves the program: one JSON document, error lines, exit codes.

Owns the rule of `--json` (one document on stdout and nothing else there) and the table of exit
codes. Must not know what the values mean.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ..errors import (
    InfeasibleError,
    MeasurementError,
    NoDataError,
    OutOfDomainError,
    RidgecastError,
    UnsupportedError,
)

__all__ = ["NO_ANSWER", "REFUSED", "USAGE", "document", "exit_code", "plain", "write_json"]

USAGE, NO_ANSWER, REFUSED = 2, 3, 4
# the first class that matches decides; any other RidgecastError is a question asked wrongly
_CODES: tuple[tuple[tuple[type[RidgecastError], ...], int], ...] = (
    ((MeasurementError,), REFUSED),
    ((UnsupportedError, OutOfDomainError, NoDataError, InfeasibleError), NO_ANSWER),
)


def exit_code(error: RidgecastError) -> int:
    """Exit code of an error: 2 usage, 3 no answer, 4 measurement refused."""
    return next((code for classes, code in _CODES if isinstance(error, classes)), USAGE)


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; see `report.view.plain`."""
    from ..report.view import plain as run

    return run(value)


def document(result: Any) -> Any:
    """JSON form of a result: its `to_dict()` where it has one."""
    return plain(result.to_dict() if hasattr(result, "to_dict") else result)


def write_json(result: Any) -> None:
    """Write one JSON document to stdout."""
    json.dump(document(result), sys.stdout, indent=2, allow_nan=False, ensure_ascii=False)
    sys.stdout.write("\n")
