"""Serving the page on this machine."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import SpecError
from .app import create_app
from .desk import Settings

__all__ = ["serve"]

_WAITING = 512  # connections
_EVERYWHERE = ("0.0.0.0", "::", "")


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    hosts: Sequence[str] = (),
    reports: Sequence[Path] = (),
    model: Path | None = None,
    browser: bool = True,
    told: Callable[[str], None] = print,
) -> None:
    """Serve until interrupted.

    `host` is the address to bind, `hosts` further names that requests may come under; `told` gets
    the line that says where the page is. Raises SpecError for a port that is taken, or for an
    address of the network without a name to answer to.
    """
    import uvicorn

    named = [*hosts, *([] if host in _EVERYWHERE else [host if ":" not in host else f"[{host}]"])]
    if host in _EVERYWHERE and not hosts:
        raise SpecError(
            f"--host {host}: say under which names it may be asked (--allow-host NAME), so that "
            "other sites cannot reach it through a browser"
        )
    for folder in reports:
        if not folder.is_dir():
            raise SpecError(f"--reports: {folder} is not a folder")
    app = create_app(Settings(tuple(named), tuple(reports), model))
    socket = _bound(host, port)
    port = socket.getsockname()[1]
    shown = hosts[0] if host in _EVERYWHERE else (f"[{host}]" if ":" in host else host)
    address = f"http://{shown}:{port}/gemm"
    config = uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False,
                            timeout_keep_alive=15, limit_concurrency=500)  # fmt: skip
    server = uvicorn.Server(config)
    told(f"ridgecast is at {address} (Ctrl-C stops it)")
    threading.Thread(target=_warm, name="warm", daemon=True).start()
    if browser:
        threading.Timer(0.5, webbrowser.open, (address,)).start()
    server.run(sockets=[socket])


def _bound(host: str, port: int) -> Any:
    """Listen at an address. Raises SpecError where it is taken or is not this machine's."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # said as TCP, or asyncio leaves Nagle's algorithm on: 40 ms an answer over a kept connection
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(_WAITING)  # before the address is told: who comes early waits
    except OSError as error:
        found.close()
        raise SpecError(
            f"--port: cannot bind {host}:{port} ({error.strerror}); try --port 0 for any free one"
        ) from None
    return found


def _warm() -> None:
    """Load what the first questions need, so that they do not wait for it."""
    from ..report.gemm_view import gemm_view, tune_view
    from ..report.questions import GemmQuestion, TuneQuestion, question_of

    gemm_view(question_of(GemmQuestion, ()))
    tune_view(question_of(TuneQuestion, ()))
