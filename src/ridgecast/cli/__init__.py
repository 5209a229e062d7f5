"""The command line: a thin face over plain functions.

Owns the parsing of options, the rendering for terminals and the exit codes. Must not compute: a
formula here is in the wrong room. Nothing but Typer is imported until a command runs.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the `ridgecast` command; an unforeseen exception is a bug of ours and exits with 1."""
    from .app import app

    try:
        app(prog_name="ridgecast")
    except Exception:
        import sys
        import traceback

        traceback.print_exc()
        sys.stderr.write("ridgecast: this is a bug in ridgecast, please report it\n")
        sys.exit(1)
