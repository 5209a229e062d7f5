"""Find and read devices: the shipped catalogue, aliases, a user's own TOML, third parties.

Nothing is read at import. Must not import any other room but `units`, `dtypes` and `errors`.
"""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..dtypes import dtype as find_dtype
from ..errors import SpecError, unknown_name
from .build import CATALOG, build
from .spec import Hardware

__all__ = ["devices_with", "get", "load", "loads", "names", "origin_of", "reference_of", "resolve"]

ENTRY_POINTS = "ridgecast.hardware"
_BRANDS = re.compile(
    r"\b(nvidia|amd|intel|geforce|tesla|quadro|radeon|instinct|graphics|gpu|tensor core)\b"
)


def names(*, third_party: bool = False) -> tuple[str, ...]:
    """Names of the catalogue's devices, sorted; with installed third parties' on request."""
    found = {path.stem for path in CATALOG.glob("*.toml")} - {"aliases"}
    if third_party:
        found |= set(_third_party())
    return tuple(sorted(found))


def get(name: str) -> Hardware:
    """Look up a device by name or by a common other spelling ("NVIDIA H200", "H100-SXM").

    Case, spaces, dashes and vendor names do not matter. Raises SpecError with the nearest three.

    >>> get("NVIDIA H200").name
    'h200_sxm'
    """
    return _get(str(name))


def resolve(what: str | Path | Hardware) -> Hardware:
    """Return a device from an object, a name, or a path that ends in .toml."""
    if isinstance(what, Hardware):
        return what
    if isinstance(what, Path) or what.endswith(".toml"):
        return load(what)
    return get(what)


@lru_cache(maxsize=128)
def reference_of(name: str) -> Hardware | None:
    """Return the catalogue's device of a name, which a what-if is compared with."""
    return _get(name) if name in _shipped() else None


def origin_of(hardware: Hardware) -> Hardware:
    """Return the catalogue's device of this name, else what it was made from, else itself."""
    return reference_of(hardware.base_name) or hardware.origin or hardware


def load(path: str | Path) -> Hardware:
    """Read a device file. Raises SpecError with the field path for anything wrong in it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or "not a text file"
        raise SpecError(f"hardware file {str(path)!r}: cannot read it ({reason})") from None
    return loads(text, origin=path.name)


def loads(text: str, *, origin: str = "hardware") -> Hardware:
    """Read a device from TOML text; `origin` names it in messages and is the default source."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise SpecError(f"{origin}: not valid TOML: {err}") from None
    return build(document, origin)


def devices_with(dtype: str) -> tuple[str, ...]:
    """Names of the catalogue's devices that have a unit for a format (by compute format)."""
    return _devices_with(find_dtype(dtype).compute)


@lru_cache(maxsize=64)
def _devices_with(compute: str) -> tuple[str, ...]:
    return tuple(name for name in names() if compute in get(name).rates)


@lru_cache(maxsize=1024)
def _get(name: str) -> Hardware:
    if name in _shipped():
        return load(CATALOG / f"{name}.toml")
    key = _normal(name)
    index = _aliases()
    if key in index:
        return _get(index[key])
    others = _third_party()
    for other, point in others.items():
        if key == _normal(other):
            return _from_entry_point(point)
    known = [*names(), *others]
    step = "List them with `ridgecast hardware`, or give a device file (my.toml)."
    raise SpecError(unknown_name("hardware", name, known, step))


@lru_cache(maxsize=1)
def _shipped() -> frozenset[str]:
    return frozenset(names())


def _normal(name: str) -> str:
    """Reduce a spelling to what tells devices apart."""
    text = re.sub(r"\((r|tm)\)|[®™]", " ", name.lower())
    return re.sub(r"[^a-z0-9]", "", _BRANDS.sub(" ", re.sub(r"[-_/,]", " ", text)))


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    document = tomllib.loads((CATALOG / "aliases.toml").read_text(encoding="utf-8"))
    index = {_normal(name): name for name in names()}
    for name, spellings in cast("dict[str, list[str]]", document).items():
        for spelling in spellings:
            known = index.setdefault(_normal(spelling), name)
            if known != name:
                raise SpecError(f"aliases.toml: {spelling!r} names both {known} and {name}")
    return index


@lru_cache(maxsize=1)
def _third_party() -> dict[str, Any]:
    from importlib.metadata import entry_points

    found: dict[str, Any] = {}
    shipped = {_normal(name) for name in names()}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in found and found[point.name].value == point.value:
            continue  # one distribution found twice on sys.path
        if point.name in found or _normal(point.name) in shipped:
            raise SpecError(
                f"hardware {point.name!r} is defined twice: entry point {point.value!r} "
                f"repeats a device that exists; rename it or uninstall its package"
            )
        found[point.name] = point
    return found


def _from_entry_point(point: Any) -> Hardware:
    made = point.load()
    made = made() if callable(made) else made
    if isinstance(made, str | Path):
        made = load(made)
    if not isinstance(made, Hardware):
        raise SpecError(
            f"entry point {point.value!r}: gives {type(made).__name__}, need a Hardware, a path "
            "to a .toml file, or a function that returns one"
        )
    return made
