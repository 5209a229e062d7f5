"""Definitions of terms, read from the glossary of the documentation (one source for both)."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

__all__ = ["definition", "glossary"]

_BLOCK = re.compile(r":::\{glossary\}\n(.*?)\n:::", re.DOTALL)
_UNIT = re.compile(r"_(j_s|flops_per_s|bytes_per_s|s|bytes|j|w|hz|flops|usd|share)$")
_END = re.compile(r"_(low|high|least|most)$")


@lru_cache(maxsize=1)
def glossary() -> dict[str, str]:
    """Every term with its definition as plain text; terms that share one have the same."""
    text = files("ridgecast.report").joinpath("assets/glossary.md").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for block in _BLOCK.findall(text):
        names: list[str] = []
        lines: list[str] = []
        for line in [*block.splitlines(), ""]:
            if line.startswith(" "):
                lines.append(line.strip())
            elif lines:
                words = " ".join(lines).replace("`", "").replace("**", "")
                found |= dict.fromkeys(names, words)
                names, lines = [], []
            if line and line[0] != " ":
                names.append(line.strip())
    return found


@lru_cache(maxsize=1024)
def definition(key: str) -> str:
    """Definition of a key or column, also without its unit or its end of an interval; or "".

    >>> definition("bound_s")[:14], definition("no such term")
    ('Speed of light', '')
    """
    known = glossary()
    for name in (key, _UNIT.sub("", key), _END.sub("", _UNIT.sub("", key)), key.replace(" ", "_")):
        if name in known:
            return known[name]
    return ""
