"""Pictures and traces that commands write beside their answer.

Owns which file a suffix means and how it is written: to a temporary name, then renamed, so that no
half of one is ever seen. Draws nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import NoDataError, SpecError

if TYPE_CHECKING:
    from ..report import Figure, View
    from ..report.timeline import Timeline

__all__ = ["check_plot", "check_trace", "command", "save_plot", "save_trace"]

SUFFIXES = (".png", ".svg", ".html")


def check_plot(path: Path | None) -> None:
    """Refuse a picture that cannot be written, before anything is computed.

    Raises SpecError for a suffix that is none of SUFFIXES or a folder that is not there.
    """
    _check(path, "--plot", SUFFIXES)


def check_trace(path: Path | None) -> None:
    """Refuse a trace that cannot be written. Raises SpecError as `check_plot`."""
    _check(path, "--trace", (".json",))


def _check(path: Path | None, option: str, suffixes: Sequence[str]) -> None:
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise SpecError(f"{option}: got {str(path)!r}, need a file that ends in "
                        f"{' or '.join(suffixes)}")  # fmt: skip
    if not path.parent.is_dir():
        raise SpecError(f"{option}: the folder {path.parent} does not exist; make it first")


def command() -> str:
    """Return the command line that is running."""
    from ..measure.record import command_line

    return command_line()


def save_plot(shown: View | Sequence[Figure], path: Path) -> None:
    """Write the figures of a view as a PNG or SVG, one a row, or the whole view as an HTML page.

    Raises SpecError for another suffix, NoDataError where no figure has data, MissingExtraError
    without matplotlib (PNG and SVG).
    """
    check_plot(path)
    from ..report import Figure, View

    figures = list(shown.figures.values()) if isinstance(shown, View) else list(shown)
    drawn = [f for f in figures if not f.reason]
    if path.suffix.lower() == ".html":
        view = shown if isinstance(shown, View) else View("figures", figures[0].title,
                                                          tuple(figures))  # fmt: skip
        from ..report.page import static_page

        page = static_page([view])
        _written(path, lambda fresh: fresh.write_text(page, encoding="utf-8"))
        return
    if not drawn:
        reasons = "; ".join(dict.fromkeys(f.reason for f in figures if isinstance(f, Figure)))
        raise NoDataError(f"--plot: there is nothing to draw: {reasons or 'no figure'}")
    from ..report.render import png_bytes, save_svg

    if path.suffix.lower() == ".svg":
        _written(path, lambda fresh: save_svg(drawn, fresh))
    else:
        data = png_bytes(drawn)
        _written(path, lambda fresh: fresh.write_bytes(data))


def save_trace(timeline: Timeline, path: Path) -> None:
    """Write a timeline in the Chrome Trace Event Format, with the command that made it."""
    from .. import __version__

    check_trace(path)
    timeline.told(command=command(), version=__version__).save(path)
    typer.echo(f"{path}: {timeline}; ui.perfetto.dev and chrome://tracing open it", err=True)


def _written(path: Path, write: Callable[[Path], Any]) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    typer.echo(f"{path}: written", err=True)
