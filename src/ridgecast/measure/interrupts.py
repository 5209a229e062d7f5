"""Signals that end a run: acted on between two writes, never inside one. Knows nothing else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interrupts"]


class Interrupts:
    """SIGTERM and SIGINT end the process through an exception, but never inside a write.

    Python's default for SIGTERM runs no `finally`. Outside the main thread, where signals cannot
    be taken over, nothing changes: the journal needs no farewell.
    """

    def __init__(self) -> None:
        self._holding, self._pending = False, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        if self._holding:
            self._pending = number
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals that arrive inside are acted on at its end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending:
            self._arrived(self._pending, None)
