"""Where files lie: local paths and fsspec URLs, and when what was written is on the disk.

Knows no file format. Loads fsspec inside the function.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, NoDataError, SpecError, nearest

__all__ = ["fsspec_module", "local_copy", "sync"]


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows writes names through and opens no folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsspec_module() -> Any:
    """Return fsspec. Raises MissingExtraError when it is not installed."""
    try:
        import fsspec  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            "reading or writing a URL needs fsspec: pip install fsspec (and the driver of the "
            "storage, such as s3fs or gcsfs)"
        ) from error
    return fsspec


@contextmanager
def local_copy(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Yield (local path, the name as asked) of a file or an fsspec URL."""
    shown = os.fspath(path)
    if "://" in shown and not shown.startswith("file://"):
        handle, local = tempfile.mkstemp()
        try:
            with os.fdopen(handle, "wb") as out, fsspec_module().open(shown, "rb") as source:
                out.write(source.read())
            yield local, shown
        except FileNotFoundError:
            raise NoDataError(f"{shown}: no such file") from None
        finally:
            os.unlink(local)
        return
    local = shown.removeprefix("file://")
    if os.path.isdir(local):
        raise SpecError(f"{shown}: is a folder, need one file")
    if not os.path.exists(local):
        folder = Path(local).parent
        present = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        close = ", ".join(nearest(Path(local).name, present)) or "none"
        raise NoDataError(f"{shown}: no such file; nearest in its folder: {close}")
    yield local, shown
