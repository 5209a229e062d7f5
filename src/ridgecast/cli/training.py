"""Commands that build and check models: train, accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SpecError
from .options import Json, Model
from .output import document, plain, write_json

__all__ = ["accuracy", "train"]


def train(
    data: Annotated[list[str], typer.Option(help="Raw tables of any importer.")],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="More tables.")
    ] = None,
    json: Json = False,
) -> None:
    """Train a model from raw measured tables.

    Any number of tables: train --data FILE FILE ... --out DIR
    """
    from ..predict.train import train as run

    paths = [*data, *(more or [])]
    typer.echo(f"training on {len(paths)} files", err=True)
    card = run(paths, out)
    if json:
        return write_json(card)
    from .render import print_rows, print_text

    print_text(f"{out}: trained")
    found = document(card)
    if isinstance(found, dict):
        scalars = [
            {"field": key, "value": str(value)}
            for key, value in found.items()
            if not isinstance(value, dict | list)
        ]
        print_rows(scalars)
    return None


def accuracy(
    model: Model = None,
    data: Annotated[Path | None, typer.Option(help="Folder of measured tables.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for accuracy.json and accuracy.md.")
    ] = None,
    json: Json = False,
) -> None:
    """Score on held-out groups, next to roofline and floor."""
    from ..accuracy import run

    if data is not None and not data.exists():
        raise SpecError(f"--data: {data} does not exist")
    result = run(model=model, data=data, out=out)
    if json:
        return write_json(result)
    from .render import print_rows

    return print_rows([plain(row) for row in result.rows])
