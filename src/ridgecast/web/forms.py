"""Forms of questions: fields with their values, choices and words, ready for a template."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, get_args

from .names import choices

__all__ = ["SLIDERS", "fields_of", "groups_of"]

# what-ifs that have a slider; others are typed
SLIDERS = (
    ("memory.bandwidth", "memory bandwidth"), ("rates", "rate"), ("l2.bandwidth", "L2 bandwidth"),
    ("l2.capacity", "L2 capacity"), ("sm_count", "SM count"), ("clock", "clock"),
    ("board_power", "power cap"),
)  # fmt: skip


def fields_of(question: type[Any], names: Sequence[str], values: dict[str, Any]) -> list[Any]:
    """Describe fields for a form, as dicts; `values` are what was asked."""
    return [_field(question, name, values) for name in names]


def groups_of(question: type[Any], hidden: Sequence[str], values: dict[str, Any]) -> list[Any]:
    """Fields by the section of the form that they stand in, in order."""
    groups: dict[str, list[Any]] = {}
    for name in question.model_fields:
        if name not in hidden:
            field = _field(question, name, values)
            groups.setdefault(field["section"], []).append(field)
    return [{"title": title, "fields": fields} for title, fields in groups.items()]


def _field(question: type[Any], name: str, values: dict[str, Any]) -> dict[str, Any]:
    given = values.get(name)
    info = question.model_fields[name]
    shown: dict[str, Any] = dict(info.json_schema_extra or {})
    default = info.get_default(call_default_factory=True)
    value = default if given is None else given
    control = shown.get("control", "text")
    if control == "select" and isinstance(default, list):
        control = "many"
    found = {
        "name": name, "title": info.title or name, "control": control,
        "section": shown.get("section", "Question"), "help": info.description or "",
        "value": value, "default": _text(default), "options": _options(info, shown),
        "kernels": shown.get("kernels", ""), "step": _step(info, default), **_bounds(info),
        "of_kernels": {},
    }  # fmt: skip
    if shown.get("options") == "knobs":
        found["of_kernels"] = _of_kernels()
        found["kernel"] = values.get("kernel") or question.model_fields["kernel"].default
    if control == "sliders":
        found |= _sliders(value or [])
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_text, value)) if isinstance(value, list) else str(value)


def _options(info: Any, shown: dict[str, Any]) -> list[str]:
    """Names that a control offers: a list of `choices`, or the values that the type allows."""
    named = shown.get("options")
    if isinstance(named, str):
        return list(_named(named))
    allowed = [a for a in get_args(info.annotation) if isinstance(a, str)]
    return allowed


def _named(name: str) -> Sequence[str]:
    if name == "claim_domains":
        from ..report.questions_claims import domains_of_works

        return ["", *domains_of_works()]
    if name.startswith("scored_"):
        return ["", *_scored()[name]]
    return choices()[name]


@lru_cache(maxsize=1)
def _of_kernels() -> dict[str, tuple[str, ...]]:
    """Kernels that have a knob of a map; a form offers only those of the kernel asked for."""
    from ..report.heat_view import kernels_with

    return {knob: kernels_with(knob) for knob in choices()["knobs"]}


@lru_cache(maxsize=1)
def _scored() -> dict[str, list[str]]:
    from ..report.accuracy_view import accuracy_options

    return accuracy_options()


def _bounds(info: Any) -> dict[str, Any]:
    found = {"least": None, "most": None}
    for bound in info.metadata:
        for end, names in (("least", ("ge", "gt")), ("most", ("le", "lt"))):
            for name in names:
                if getattr(bound, name, None) is not None:
                    found[end] = getattr(bound, name)
    return found


def _step(info: Any, default: Any) -> str:
    return "1" if isinstance(default, int) or "int" in str(info.annotation) else "any"


def _sliders(changes: Sequence[str]) -> dict[str, Any]:
    """Positions of sliders [per cent], and the changes that are none."""
    split = (text.partition("=") for text in changes)
    given: dict[str, str] = {field: change for field, _, change in split}
    rows, left = [], dict(given)
    for field, label in SLIDERS:
        text = given.get(field, "")
        number = text.removesuffix("%").strip()
        whole = text.endswith("%") and number.lstrip("+-").isdecimal()
        percent = int(number) if whole else 0
        if whole and -90 <= percent <= 300:
            left.pop(field, None)
        rows.append({"field": field, "label": label, "percent": percent})
    others = [text for text in changes if text.partition("=")[0] in left]
    return {"sliders": rows, "others": others}
