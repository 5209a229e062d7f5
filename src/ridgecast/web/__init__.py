"""The local web page and its JSON interface: a thin face over the views of `report`.

Owns routes, forms, what a request may ask for, and what it may not. Must not compute: an answer
that the command line cannot give is in the wrong room. FastAPI is imported when an app is made.
"""

from __future__ import annotations

from typing import Any

__all__ = ["create_app", "serve"]


def create_app(**settings: Any) -> Any:
    """Return the ASGI application; see `app.Settings` for what can be set."""
    from .app import Settings
    from .app import create_app as run

    return run(Settings(**settings))


def serve(**settings: Any) -> None:
    """Serve the page until interrupted; see `run.serve`."""
    from .run import serve as run

    run(**settings)
