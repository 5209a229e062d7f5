"""Commands that build and check models: train, accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SpecError
from .options import Json, Model, Plot
from .output import document, write_json
from .plotting import check_plot, command, save_plot

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
    card = run(paths, out, progress=lambda text: typer.echo(text, err=True))
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


def accuracy(  # noqa: PLR0913, PLR0917 - a command has as many parameters as options
    model: Model = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Measured tables or folders of them; repeatable.")
    ] = None,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="More tables.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these: random, unseen_shape, off_grid, frontier, unseen_device ...; "
            "repeatable, by default all. With --data and no --model, what is trained for."
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Only these: time, time_operator, time_config, power, energy."),
    ] = None,
    on: Annotated[list[str] | None, typer.Option(help="Only these devices.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only these number formats.")] = None,
    op: Annotated[
        list[str] | None, typer.Option(help="Only these operations; `attention` takes its kinds.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for accuracy.json and accuracy.md, of all scores.")
    ] = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Score on held-out groups, next to roofline and floor.

    Without --data, the scores that the models' cards hold. With it, they are computed again: of
    --model on rows that it was not trained on, else by training on the rest of each split.
    """
    from ..accuracy import run

    check_plot(plot)
    paths = [*(data or []), *(more or [])]
    for path in paths:
        if not path.exists():
            raise SpecError(f"--data: {path} does not exist")
    wanted = {"target": target or (), "hardware": on or (), "dtype": dtype or (), "op": op or ()}
    fresh = bool(paths) and model is None
    result = run(model=model, data=paths or None, out=out, splits=split if fresh else None)
    wanted["split"] = () if fresh else split or ()
    if any(wanted.values()):
        result = result.only(**wanted)
    if json:
        write_json(result)
    else:
        _show(result)
    if plot is not None:
        _draw(result, model, plot, wanted, recomputed=bool(paths))


def _draw(
    result: Any, model: Path | None, plot: Path, wanted: Mapping[str, Sequence[str]], *,
    recomputed: bool,
) -> None:  # fmt: skip
    """Draw the scores of the cards as the page does; scores of --data by themselves."""
    if recomputed or any(len(values) > 1 for values in wanted.values()):
        from ..report.result_views import accuracy_report_view

        return save_plot(accuracy_report_view(result, command=command()), plot)
    from ..report.accuracy_view import accuracy_view
    from ..report.questions_accuracy import AccuracyQuestion

    asked = {name: values[0] for name, values in wanted.items() if values}
    return save_plot(accuracy_view(AccuracyQuestion.model_validate(asked), model=model), plot)


def _show(result: Any) -> None:
    """Print one table for each target; what could not be scored, and notes, go to stderr."""
    if not result.rows:
        typer.echo("no score has all of these: leave an option out", err=True)
    typer.echo(result.to_markdown(compact=True), nl=False)
    for row in result.rows:
        if row["status"] != "ok":
            name = " ".join(str(row[key]) for key in ("hardware", "dtype", "split"))
            typer.echo(f"not scored: {name}: {row['reason']}", err=True)
    for note in result.meta["notes"]:
        typer.echo(note, err=True)
