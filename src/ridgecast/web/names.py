"""Names that a request may use: what ships, what was given at start; never a path.

The command line accepts files where it accepts names; a request may not, so that nothing that it
sends reaches the file system or the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from ..errors import SpecError, unknown_name

__all__ = ["choices", "known"]


@lru_cache(maxsize=1)
def choices() -> dict[str, tuple[str, ...]]:
    """Names for the controls of forms, by kind."""
    from .. import techniques
    from ..dtypes import DTYPES
    from ..hardware import names as devices
    from ..models import names as models
    from ..report.heat_view import KNOBS
    from ..scenario import engine_names

    return {
        "devices": tuple(devices()), "dtypes": tuple(DTYPES),
        "formats": ("", *DTYPES), "models": tuple(models()), "engines": tuple(engine_names()),
        "techniques": tuple(techniques.names()), "knobs": KNOBS,
    }  # fmt: skip


def known(question: Any) -> Any:
    """Return the same question with device and model names as the catalogues spell them.

    Raises SpecError, with the nearest three, for a name that does not ship.
    """
    change: dict[str, Any] = {}
    fields = type(question).model_fields
    for field in ("on", "against"):
        value = getattr(question, field, None)
        if field in fields and value:
            change[field] = _device(value) if isinstance(value, str) else _devices(value)
    if "model" in fields:
        from ..models import shipped

        change["model"] = shipped(question.model)
    for text in getattr(question, "technique", None) or ():
        _techniques(text)
    for text in getattr(question, "price", None) or ():
        _device(text.partition("=")[0])
    same = all(getattr(question, k) == v for k, v in change.items())
    return question if same else question.model_copy(update=change)


def _devices(names: Iterable[str]) -> list[str]:
    return [_device(name) for name in names]


def _device(name: str) -> str:
    from ..hardware import get

    return get(name).name


def _techniques(text: str) -> None:
    from .. import techniques

    for word in text.replace("|", ",").split(","):
        name = word.partition(":")[0].strip()
        if name and name.lower().replace("_", "-") not in choices()["techniques"]:
            raise SpecError(unknown_name("technique", name, techniques.names()))
