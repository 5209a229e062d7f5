"""Names that a request may use: what ships, what was given at start; never a path.

The command line accepts files where it accepts names; a request may not, so that nothing that it
sends reaches the file system or the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

    Raises SpecError, with the field and the nearest three, for a name that does not ship.
    """
    change: dict[str, Any] = {}
    fields = type(question).model_fields
    for field in ("on", "against"):
        value = getattr(question, field, None)
        if field in fields and value:
            change[field] = _each(field, value, _device)
    if "model" in fields:
        from ..models import shipped

        change["model"] = shipped(question.model)
    if "on" in fields:
        for field in ("dtype", "kv_dtype"):
            _each(field, getattr(question, field, None) or "", _format)
    _each("technique", getattr(question, "technique", None) or (), _techniques)
    _each("price", getattr(question, "price", None) or (), lambda text: _device(_before(text, "=")))
    same = all(getattr(question, k) == v for k, v in change.items())
    return question if same else question.model_copy(update=change)


def _each(field: str, value: str | Iterable[str], look: Callable[[str], str]) -> Any:
    """Look up one name, or each of several; a refusal names the field."""
    try:
        return look(value) if isinstance(value, str) else [look(one) for one in value]
    except SpecError as error:
        raise SpecError(f"{field}: {error}") from None


def _before(text: str, mark: str) -> str:
    return text.partition(mark)[0]


def _device(name: str) -> str:
    from ..hardware import get, names

    try:
        return get(name).name
    except SpecError:
        told = "List them with `ridgecast hardware`."  # no word of files: a request may name none
        raise SpecError(unknown_name("hardware", name, names(), told)) from None


def _format(name: str) -> str:
    from ..dtypes import dtype

    return dtype(name).name if name else name


def _techniques(text: str) -> str:
    from .. import techniques

    for word in text.replace("|", ",").split(","):
        name = _before(word, ":").strip()
        if name and name.lower().replace("_", "-") not in choices()["techniques"]:
            raise SpecError(unknown_name("technique", name, techniques.names()))
    return text
