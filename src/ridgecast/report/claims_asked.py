"""From what a recipe asked of the models to the page that answers the same.

Owns which of a recipe's questions a page can ask, and what that page would see differently.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..claims.asked import Asked
from ..errors import RidgecastError
from ..hardware import Hardware, resolve
from ..models import get, names
from ..models.network import Layout, Network
from ..ops import Gemm
from ..scenario import Engine, Host, Scenario, Traffic, engine
from ..techniques import Treatment, treatment_of
from .questions import GemmQuestion, LlmQuestion

__all__ = ["Page", "page_of"]

_LAYOUT = ("tp", "pp", "dp", "ep", "cp")


@dataclass(frozen=True, slots=True)
class Page:
    """The page behind a question: its address, or "" and in `note` why there is none.

    With an address, `note` says which of several swept points it shows, or what differs there.
    """

    address: str = ""
    note: str = ""


class _NoPageError(Exception):
    """Why no page can ask a question."""


def page_of(asked: Asked) -> Page:
    """Find the page that answers a recipe's question."""
    source = asked.source
    try:
        if isinstance(source, Scenario):
            return _llm(source, asked)
        if isinstance(source, Gemm):
            return _gemm(source, asked)
    except _NoPageError as why:
        return Page(note=str(why))
    except ValueError as error:  # beyond the bounds of a question's fields
        return Page(note=f"the page does not take it: {str(error).splitlines()[0]}")
    return Page()


def _llm(s: Scenario, asked: Asked) -> Page:
    t = s.traffic
    if s.host != Host():
        raise _NoPageError("a host of its own")
    if s.experts or s.trained is not None:
        raise _NoPageError("formats or models of its own")
    question = LlmQuestion(
        model=_model(s.model), on=_device(s.hardware), devices=s.devices,
        engine=_engine(s.engine), dtype=s.dtype, kv_dtype=s.kv_dtype, isl=t.isl, osl=t.osl,
        batch=str(t.batch), request_rate=t.request_rate, prefix=t.prefix,
        price_per_h=s.price_per_h, technique=_techniques(s.techniques), **_layout(s),
    )  # fmt: skip
    notes = [_point(f"{t.isl:,} + {t.osl:,} tokens, batch {t.batch}", asked)]
    usual = Traffic().rounds
    if t.rounds != usual:
        notes.append(f"there over {usual:g} rounds a client")
    return Page(question.address(), "; ".join(note for note in notes if note))


def _point(text: str, asked: Asked) -> str:
    """Text of the point that the page shows, where several were asked."""
    swept = " to " in asked.batch or ", " in asked.batch or ";" in asked.sizes
    return text if swept else ""


def _model(model: str | Network) -> str:
    if isinstance(model, str):
        return model
    if model.name not in names() or get(model.name) != model:
        raise _NoPageError("a network of its own")
    return model.name


def _device(on: str | Hardware) -> str:
    if isinstance(on, str):
        return on
    try:
        if resolve(on.name) == on:
            return on.name
    except RidgecastError:
        pass
    raise _NoPageError("a changed device")


def _engine(given: str | Engine) -> str:
    if isinstance(given, str):
        return given
    try:
        if engine(given.name) == given:
            return given.name
    except RidgecastError:
        pass
    raise _NoPageError("an engine of its own")


def _techniques(given: str | Treatment) -> list[str]:
    if isinstance(given, str):
        return [word.strip() for word in given.split(",") if word.strip()]
    try:
        if treatment_of(list(given.techniques)) == given:
            return list(given.techniques)
    except RidgecastError:
        pass
    raise _NoPageError("a treatment of its own")


def _layout(s: Scenario) -> dict[str, Any]:
    if s.layout is None:
        return {}
    if s.layout.gpus_per_node != Layout().gpus_per_node:
        raise _NoPageError("nodes of its own")
    given = {name: getattr(s.layout, name) for name in _LAYOUT}
    changed = {name: n for name, n in given.items() if n != 1}
    # a layout of ones on many devices is not the same as none given
    return changed or ({"tp": 1} if s.devices > 1 else {})


def _gemm(op: Gemm, asked: Asked) -> Page:
    if not asked.on or ", changed" in asked.on:
        raise _NoPageError("no device" if not asked.on else "a changed device")
    work = {name: getattr(op, name) for name in ("m", "n", "k", "batch", "dtype", "layout")}
    if Gemm(**work) != op:
        raise _NoPageError("more than a plain product")
    question = GemmQuestion(**work, on=asked.on, **_kernel(asked.config))
    notes = []
    if " to " in asked.sizes:
        notes.append(f"{op.m:,} × {op.n:,} × {op.k:,}")
    if asked.what.startswith("time by physics"):
        notes.append("predicted there, counted by physics here")
    return Page(question.address(), "; ".join(notes))


def _kernel(config: Any) -> dict[str, Any]:
    """Fields of a question about a kernel's configuration."""
    if config is None:
        return {}
    given = {f.name: getattr(config, f.name) for f in fields(config)}
    known = {k: v for k, v in given.items() if k in GemmQuestion.model_fields and v is not None}
    usual = {f.name: f.default for f in fields(config)}
    others = [f"{k}={v}" for k, v in given.items() if k not in known and v != usual[k]]
    return {"kernel": config.kernel, **known, "config": others}
