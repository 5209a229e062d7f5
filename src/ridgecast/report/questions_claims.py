"""The question that the page of published works answers: which of them, or one in detail."""

from __future__ import annotations

import shlex
from typing import Any, ClassVar, Literal

from pydantic import Field

from ..claims import Work, works
from ..errors import SpecError, unknown_name
from .questions import Question

__all__ = ["ClaimsQuestion", "domains_of_works", "works_asked"]


def _control(name: str, options: str = "") -> dict[str, Any]:
    """Return what a form needs: the control, its section, and where its options are."""
    found = {"control": name, "section": "Works"}
    return found | ({"options": options} if options else {})


class ClaimsQuestion(Question):
    """What the literature claims, recomputed: all works, or those of a domain or verdict, or one.

    `text` looks in id, title, mechanism, kind, source, domain and levers.
    """

    page: ClassVar[str] = "claims"

    work: str = Field(default="", max_length=80, title="Work",
                      description="Id of one work, in detail.",
                      json_schema_extra=_control("text"))  # fmt: skip
    domain: str = Field(default="", max_length=64, title="Domain", description="Field of work.",
                        json_schema_extra=_control("select", "claim_domains"))  # fmt: skip
    verdict: Literal["", "reproduced", "direction only", "contradicted", "not modelled"] = Field(
        default="", title="Verdict", description="How the recomputed figures agree.",
        json_schema_extra=_control("select"),
    )  # fmt: skip
    text: str = Field(default="", max_length=200, title="Search",
                      description="Words in id, title or mechanism.",
                      json_schema_extra=_control("text"))  # fmt: skip

    def command(self) -> str:
        """`claims`, with the work or with the options that it has."""
        words = ["ridgecast", "claims"]
        if self.work:
            return shlex.join([*words, self.work])
        words += ["--verdict", self.verdict.replace(" ", "-")] if self.verdict else []
        words += ["--domain", self.domain] if self.domain else []
        words += ["--text", self.text] if self.text else []
        return shlex.join(words)

    def python(self) -> str:
        """`claims.check` of one work, `claims.check_all` of many."""
        if self.work:
            return ("from ridgecast.claims import check\n\n"
                    f"one = check({self.work!r})\nprint(one.verdict, one.headline)")  # fmt: skip
        tests = [f"w.domain == {self.domain!r}"] if self.domain else []
        tests += [f"w.says({self.text!r})"] if self.text else []
        chosen = f"w.id for w in works() if {' and '.join(tests)}" if tests else ""
        lines = [f"from ridgecast.claims import check_all{', works' if chosen else ''}", "",
                 f"for one in check_all({chosen}):"]  # fmt: skip
        if self.verdict:
            lines.append(f"    if one.verdict == {self.verdict!r}:")
        lines.append(f"{'    ' * (2 if self.verdict else 1)}print(one.id, one.verdict)")
        return "\n".join(lines)


def domains_of_works() -> list[str]:
    """Names of all domains, in order."""
    return sorted({entry.domain for entry in works()})


def works_asked(q: ClaimsQuestion) -> list[Work]:
    """Works of the ledger that a question is about, whatever their verdict; nothing is recomputed.

    Raises SpecError for a work or a domain that the ledger does not have, with the nearest three.
    """
    if q.work:
        from ..claims import work

        return [work(q.work)]
    known = domains_of_works()
    if q.domain and q.domain not in known:
        raise SpecError(unknown_name("domain", q.domain, known))
    return [w for w in works() if q.domain in ("", w.domain) and w.says(q.text)]
