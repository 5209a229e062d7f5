"""Listening to what is asked of the models, without changing who asks.

    with observing(lambda kind, *asked: found.append((kind, asked))):
        ...

Rooms that answer questions say `told(kind, ...)` first; where nobody listens that is one look at a
context variable. Kinds and what comes with them:

    predict   op, device, configuration
    serve     scenario, points
    memory    scenario, batch (a number, or "max")
    generate  generation
    pass      job
    train     network, device (None: memory alone), plan, treatment
    work      operation, fields, the work that was made of them
    time      work, device

Owns the variable and nothing of what is told. Listeners are of one context: threads that answer on
its behalf are not heard, other sessions never are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Listener", "observing", "told"]

Listener = Callable[..., None]
_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


def told(kind: str, *asked: Any) -> None:
    """Tell whoever listens what is asked."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(kind, *asked)


@contextmanager
def observing(listener: Listener) -> Iterator[None]:
    """Have `listener(kind, *asked)` called for every question asked inside; the inner one hears."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)
