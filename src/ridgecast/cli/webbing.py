"""The command `web`: the local page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from . import options as o

__all__ = ["web"]

# many small matrix products: threads of the BLAS cost more than they bring
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def web(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name to answer to.")
    ] = None,
    reports: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Studies and campaigns to show; repeatable."),
    ] = None,
    model: o.Model = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
) -> None:
    """Open the local page: bench, planner, claims, accuracy, reports."""
    for name in _THREADS:
        os.environ.setdefault(name, "1")
    from ..web import serve
    from .lean import lean_lightgbm

    lean_lightgbm()
    serve(host=host, port=port, hosts=allow_host or (), reports=reports or (), model=model,
          browser=not no_browser, told=typer.echo)  # fmt: skip
