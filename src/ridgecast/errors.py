"""The error family of ridgecast.

Owns every exception that the package raises on purpose, and the helper that names the nearest
allowed spellings. Must not import any other room.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "InfeasibleError",
    "MeasurementError",
    "MissingExtraError",
    "NoDataError",
    "OutOfDomainError",
    "RidgecastError",
    "SpecError",
    "UnsupportedError",
    "nearest",
    "unknown_name",
]


class RidgecastError(Exception):
    """Anything that ridgecast refuses on purpose; its message says what to do next."""


class SpecError(RidgecastError, ValueError):
    """A specification (device file, shape, option, table) is malformed; names the field."""


class UnsupportedError(RidgecastError, NotImplementedError):
    """The device or the model has no unit or no formula for what was asked."""


class OutOfDomainError(RidgecastError, ValueError):
    """The point lies where no answer can be formed honestly."""


class NoDataError(RidgecastError, LookupError):
    """No measurement or no model answers the question."""


class InfeasibleError(RidgecastError, ValueError):
    """The request cannot be met by any configuration; says what would make it fit."""


class MeasurementError(RidgecastError, RuntimeError):
    """A measurement was refused or broke a rule of the protocol."""


class MissingExtraError(RidgecastError, ImportError):
    """An optional dependency is not installed; the message holds the install line."""


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` names of `allowed` that are spelled most like `name`.

    >>> nearest("h200", ["h200_sxm", "h100_sxm", "l4"])[0]
    'h200_sxm'
    """
    names = sorted(set(allowed))
    return difflib.get_close_matches(name.lower(), names, n=count, cutoff=0.0)


def unknown_name(what: str, got: str, allowed: Iterable[str], next_step: str = "") -> str:
    """Build the message for a misspelt name: what was asked, the nearest three, what to do."""
    close = ", ".join(nearest(got, allowed))
    tail = f" {next_step}" if next_step else ""
    return f"unknown {what} {got!r}; nearest: {close or 'none'}.{tail}"
