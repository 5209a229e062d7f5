"""The command `report`: views as one static HTML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SpecError, unknown_name
from . import options as o
from .output import write_json

__all__ = ["report"]


def report(
    what: Annotated[
        str,
        typer.Argument(
            metavar="KIND[,KIND...]|FOLDER",
            help="gemm, advice, heat, tune, llm, waterfall, limits, plan, claims, accuracy; or the "
            "folder of a study or a campaign.",
            show_default=False,
        ),
    ],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="FIELD=VALUE ...", help="The question, as in a page's address."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the page goes.")] = None,
    model: o.Model = None,
    json: o.Json = False,
) -> None:
    """Write views as one HTML page that needs no network, to send on.

    Fields are those of the web page: m=4096 on=h200_sxm against=h100_sxm what_if=clock=+10%.
    """
    views = _views(what, fields or (), model)
    path = out or Path(f"ridgecast-{_stem(what)}.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise SpecError(f"--out: got {path.name!r}, need a file that ends in .html")
    from ..report.page import static_page

    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(static_page(views), encoding="utf-8")
    draft.replace(path)
    if json:
        write_json([v.to_dict() for v in views])
    else:
        typer.echo(f"{path}: {', '.join(v.title for v in views)}")


def _stem(what: str) -> str:
    return Path(what).name.replace(",", "-") or "report"


def _views(what: str, fields: Any, model: Path | None) -> list[Any]:
    from ..report.kinds import kind

    folder = Path(what)
    if folder.is_dir():
        if fields:
            raise SpecError(f"report {what}: a folder takes no fields, got {' '.join(fields)!r}")
        from ..report.stored import stored_view

        return [stored_view(folder)]
    from ..report.questions import question_of
    from .lean import lean_lightgbm

    lean_lightgbm()
    kinds = [kind(name.strip()) for name in what.split(",")]
    pairs = [_pair(text) for text in fields]
    known = {name for k in kinds for name in k.question.model_fields}
    for name, _ in pairs:
        if name not in known:
            raise SpecError(unknown_name(f"field of {what}", name, known,
                                         "A page's address shows them."))  # fmt: skip
    return [
        k.view(question_of(k.question, [p for p in pairs if p[0] in k.question.model_fields]),
               model=model)
        for k in kinds
    ]  # fmt: skip


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SpecError(f"report: got {text!r}, need FIELD=VALUE, as m=4096")
    return name.strip(), value.strip()
