"""Where questions are answered: the store of recent answers, lanes, works being recomputed.

Python runs one question at a time anyway; lanes of one keep their order, so that nobody waits for
everybody, and quick questions never queue behind slow ones.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ..report.view import View
from .answers import Kept, rendered
from .names import known

if TYPE_CHECKING:
    from ..claims import Checked
    from .sections import Section

__all__ = ["ClaimsDesk", "Desk", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server is started with.

    `hosts` are names that it answers to besides those of this machine, `reports` folders of studies
    and campaigns to show, `model` a folder of trained models.
    """

    hosts: Sequence[str] = ()
    reports: Sequence[Path] = ()
    model: Path | None = None


class ClaimsDesk:
    """Works of the ledger, recomputed once and in the background: all of them take half a minute.

    The first question about them starts the work; whoever asks meanwhile gets what is there.
    """

    def __init__(self) -> None:
        self._checked: dict[str, Checked] = {}
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None

    def checked(self) -> list[Checked]:
        """Works that are recomputed so far, in the ledger's order."""
        from ..claims import works

        with self._lock:
            if self._worker is None:
                self._worker = threading.Thread(target=self._run, name="claims", daemon=True)
                self._worker.start()
            return [self._checked[w.id] for w in works() if w.id in self._checked]

    def _run(self) -> None:
        from ..claims import check, works

        for work in works():
            found = check(work.id)
            with self._lock:
                self._checked[work.id] = found


@dataclass(frozen=True, slots=True)
class Desk:
    """What the routes share."""

    settings: Settings
    kept: Kept = field(default_factory=Kept)
    claims: ClaimsDesk = field(default_factory=ClaimsDesk)
    quick: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))
    slow: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    def lane(self, section: Section) -> anyio.CapacityLimiter:
        """Lane of a section's questions."""
        return self.slow if section.slow else self.quick

    def view(self, section: Section, question: Any) -> View:
        """View of a question, once its names are known to ship. Raises RidgecastError."""
        return section.view(known(question), self)

    def answer(self, section: Section, question: Any, form: str = "json", table: str = "") -> bytes:
        """Bytes of an answer, from the store where it was asked before. Raises RidgecastError."""

        def make() -> bytes:
            return rendered(self.view(section, question), form, table)

        if not section.kept:
            return make()
        return self.kept.get((section.name, question.address(), form, table), make)
