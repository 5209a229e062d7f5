"""The command `claims`: what the literature claims, recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SpecError, unknown_name
from ..units import format_number
from .options import Json, Plot
from .output import write_json
from .plotting import check_plot, save_plot

if TYPE_CHECKING:
    from ..claims import Checked, Line

__all__ = ["claims"]


def claims(
    work: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="One work, in detail.", show_default=False),
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(help="Only these: reproduced, direction only, contradicted, not modelled."),
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="Only these, such as attention or moe.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Only these: words in id, title, mechanism, kind, source or levers."),
    ] = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Recompute what published works claim.

    A row a work: published, recomputed, where in the parameter range, verdict. With ID, every
    figure of one work and why.
    """
    from ..claims import check, check_all, works
    from ..claims.verdict import VERDICTS

    check_plot(plot)
    if work is not None:
        found = check(work)
        if plot is not None:
            from ..report.claims_view import claim_view

            save_plot(claim_view(found.work.id), plot)
        return write_json([found.to_dict()]) if json else _show_work(found)
    if verdict is not None:
        verdict = _known("verdict", verdict.replace("-", " ").replace("_", " "), VERDICTS)
    if domain is not None:
        _known("domain", domain, sorted({entry.domain for entry in works()}))
    words = text or ""
    everything = check_all(
        w.id for w in works() if domain in (None, w.domain) and w.says(words)
    )  # fmt: skip
    checked = [one for one in everything if verdict in (None, one.verdict)]
    if json:
        write_json([one.to_dict() for one in checked])
    else:
        _show_all(checked, all_shown=verdict is not None)
    if plot is not None:
        from ..report.claims_view import claims_view
        from ..report.questions_claims import ClaimsQuestion

        asked = {"domain": domain or "", "text": words, "verdict": verdict or ""}
        save_plot(claims_view(everything, q=ClaimsQuestion.model_validate(asked)), plot)
    return None


def _known(option: str, got: str, allowed: Sequence[str]) -> str:
    if got not in allowed:
        raise SpecError(unknown_name(option, got, allowed))
    return got


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "holds" if value else "does not hold"
    if isinstance(value, tuple):
        return " to ".join(_number(end) for end in value)
    if value is None:
        return ""
    return format_number(value)


def _row(line: Line) -> dict[str, str]:
    unit = f" {line.unit}" if line.unit else ""
    return {
        "figure": line.metric.replace("_", " "),
        "published": _number(line.published) + unit if line.published is not None else "",
        "recomputed": _number(line.recomputed),
        "where": line.at,
        "verdict": line.verdict,
    }


def _show_all(checked: Sequence[Checked], *, all_shown: bool) -> None:
    from ..claims.verdict import NOT_MODELLED, VERDICTS
    from .render import print_rows, print_text

    rows = []
    for one in checked:
        if one.headline is not None and (all_shown or one.verdict != NOT_MODELLED):
            rows.append({"work": one.id, **_row(one.headline)})
    if rows:
        print_rows(rows)
    counts = {name: sum(one.verdict == name for one in checked) for name in VERDICTS}
    found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    print_text(found or "no such work: leave an option out")
    if counts[NOT_MODELLED] and not all_shown:
        print_text("`ridgecast claims --verdict not-modelled` lists the rest, and ID says why.")


def _show_work(one: Checked) -> None:
    from .render import print_rows, print_text

    entry = one.work
    source = f" ({entry.source})" if entry.source else ""
    print_text(f"{entry.title}{source}")
    print_text(f"{entry.kind}, {entry.domain}: {entry.mechanism}")
    rows = [{**_row(line), "why": line.why} for line in one.figures]
    if rows:
        print_rows(rows)
    for line in one.figures:
        if line.range:
            print_text(f"{line.metric}: over {line.range}")
    print_text(f"{one.verdict}: {one.why}" if one.why else one.verdict)
