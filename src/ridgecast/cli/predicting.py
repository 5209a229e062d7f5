"""Commands that predict: predict, explain, tune."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import NoDataError, SpecError, UnsupportedError, unknown_name
from ..units import key_values
from . import options as o
from .calibrating import HARDWARE_FILE, THIS, calibrated_folder
from .output import NO_ANSWER, document, plain, write_json
from .parse import parse_op
from .plotting import check_plot, check_trace, command, save_plot, save_trace

if TYPE_CHECKING:
    from ..hardware import Hardware
    from ..ops import Gemm, Op

__all__ = ["explain", "predict", "tune"]

OBJECTIVES = ("time", "energy", "edp")
CACHES = ("hot", "cold")


def _device(on: str | None, user: Path | None, model: Path | None) -> tuple[Any, Path | None]:
    """Resolve --on or --hardware, of which exactly one must be given, and the model folder.

    `this` is the machine that `calibrate --on this` measured, with the model that it left.
    """
    from ..hardware import resolve

    if (on is None) == (user is None):
        got = "both" if on else "none"
        raise SpecError(f"device: got {got}, need one of --on NAME or --hardware FILE.toml")
    if on == THIS:
        folder = model or calibrated_folder(THIS)
        if not (folder / HARDWARE_FILE).exists():
            raise NoDataError(
                f"--on this: {folder} holds no calibration of this machine; run "
                "`ridgecast calibrate --on this` first"
            )
        return resolve(folder / HARDWARE_FILE), folder
    return resolve(str(user) if user else str(on)), model


def _choice(option: str, got: str | None, allowed: tuple[str, ...]) -> str | None:
    if got is not None and got not in allowed:
        raise SpecError(unknown_name(option, got, allowed, f"Allowed: {', '.join(allowed)}."))
    return got


def predict(  # noqa: PLR0913, PLR0917 - a command has as many parameters as options
    op: Annotated[str | None, typer.Argument(help="Operation.", show_default=False)] = None,
    shape: Annotated[
        list[str] | None,
        typer.Argument(help="MxNxK for gemm, FIELD=VALUE ... for others.", show_default=False),
    ] = None,
    dtype: o.Dtype = None,
    on: o.On = None,
    hardware: o.UserHardware = None,
    batch: o.Batch = None,
    layout: o.Layout = None,
    cache: o.Cache = None,
    kernel: o.Kernel = None,
    tile: o.Tile = None,
    tile_m: o.TileM = None,
    tile_n: o.TileN = None,
    tile_k: o.TileK = None,
    stages: o.Stages = None,
    split_k: o.SplitK = None,
    config: o.ConfigPairs = None,
    model: o.Model = None,
    level: o.Level = 0.9,
    table: Annotated[Path | None, typer.Option(help="Predict every row of this table.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the table goes.")] = None,
    plot: o.Plot = None,
    json: o.Json = False,
) -> None:
    """Predict time, power, energy and memory: one or a table."""
    if not 0.0 < level < 1.0:
        raise SpecError(f"--level: got {level}, need a share between 0 and 1, such as 0.9")
    if table is not None:
        if op or shape or on or hardware:
            raise SpecError("--table: the op and the device are columns; leave out the arguments")
        if plot is not None:
            raise SpecError("--plot: draws one prediction; leave out --table")
        return _predict_file(table, out, model=model, level=level, json=json)
    if op is None or not shape:
        raise SpecError("need OP and SHAPE (predict gemm 4096x4096x4096 ...), or --table FILE")
    if out is not None:
        raise SpecError("--out: goes with --table; for one prediction use --json")
    from ..kernels.asked import build_config, config_columns

    check_plot(plot)
    sizes = {"tile": tile, "tile_m": tile_m, "tile_n": tile_n, "tile_k": tile_k}
    columns = config_columns(kernel, {**sizes, "stages": stages, "split_k": split_k}, config or ())
    kernel_config = build_config(columns)  # refuses an unknown kernel or parameter
    work = parse_op(op, shape, dtype=dtype, batch=batch, layout=layout)
    _no_kernel(work, columns)
    if _choice("cache", cache, CACHES):
        columns["cache"] = str(cache)
    device, model = _device(on, hardware, model)
    from ..predict.prediction import predicted_row

    row = plain(predicted_row(work, device, columns, model=model, level=level))
    if json:
        write_json(row)
    else:
        from .render import print_card

        print_card(row, title=_title(work, shape, device), level=level)
    if row.get("status") != "ok":
        reason = row.get("reason") or "no reason given"
        typer.echo(f"ridgecast: no answer: {reason}", err=True)
        raise typer.Exit(NO_ANSWER)
    if plot is not None:
        from ..predict.explain import explain as run
        from ..report.result_views import explanation_view

        told = run(work, device, config=kernel_config, model=model, level=level)
        save_plot(explanation_view(told, row=row, command=command()), plot)
    return None


def _no_kernel(work: Gemm | Op, columns: dict[str, Any]) -> None:
    """Refuse kernel options for an operation that has none. Raises SpecError."""
    if columns and work.name != "gemm":
        names = ", ".join(f"--{key.replace('_', '-')}" for key in columns)
        raise SpecError(
            f"{names}: {work.name} takes none; `ridgecast ops {work.name}` shows fields"
        )


def _title(work: Gemm | Op, words: list[str], device: Hardware) -> str:
    dtype = getattr(work, "dtype", "")
    shown = [w for w in words if not w.startswith("dtype=")]
    return " ".join([work.name, *shown, *([dtype] if dtype else []), "on", device.name])


def _predict_file(
    table: Path, out: Path | None, *, model: Path | None, level: float, json: bool
) -> None:
    if out is None and not json:
        raise SpecError("--table: say where the result goes (--out FILE), or use --json")
    import numpy as np

    from ..store import length, read_table, write_table

    rows_in = read_table(table)
    from ..predict import predict_table

    result = predict_table(rows_in, model=model, level=level)
    good = np.asarray(result["status"]) == "ok"
    rows, answered = length(result), int(good.sum())
    if out is None:
        columns = {key: plain(column) for key, column in result.items()}
        write_json([{key: columns[key][i] for key in columns} for i in range(rows)])
    else:
        write_table(out, result)
        reasons, counts = np.unique(
            np.asarray(result["reason"], dtype=str)[~good], return_counts=True
        )
        order = np.argsort(-counts)[:5]
        worst = {str(reasons[i]): int(counts[i]) for i in order}
        summary = {"rows": rows, "ok": answered, "not_ok": rows - answered, "reasons": worst}
        if json:
            write_json({**summary, "out": str(out)})
        else:
            typer.echo(f"{out}: {answered} of {rows} rows predicted", file=sys.stdout)
            for reason, count in worst.items():
                typer.echo(f"{count} rows: {reason}", err=True)
    if rows and not answered:
        typer.echo("ridgecast: no answer: no row could be predicted", err=True)
        raise typer.Exit(NO_ANSWER)


def explain(  # noqa: PLR0913, PLR0917
    op: o.Op,
    shape: o.Shape,
    dtype: o.Dtype = None,
    on: o.On = None,
    hardware: o.UserHardware = None,
    batch: o.Batch = None,
    layout: o.Layout = None,
    kernel: o.Kernel = None,
    tile: o.Tile = None,
    tile_m: o.TileM = None,
    tile_n: o.TileN = None,
    tile_k: o.TileK = None,
    stages: o.Stages = None,
    split_k: o.SplitK = None,
    config: o.ConfigPairs = None,
    what_if: o.WhatIf = None,
    model: o.Model = None,
    level: o.Level = 0.9,
    plot: o.Plot = None,
    trace: o.Trace = None,
    json: o.Json = False,
) -> None:
    """Show where the time and energy go, and what if."""
    from ..kernels.asked import build_config, config_columns

    check_plot(plot)
    check_trace(trace)
    sizes = {"tile": tile, "tile_m": tile_m, "tile_n": tile_n, "tile_k": tile_k}
    columns = config_columns(kernel, {**sizes, "stages": stages, "split_k": split_k}, config or ())
    changes = key_values(what_if or (), "--what-if")
    work = parse_op(op, shape, dtype=dtype, batch=batch, layout=layout)
    _no_kernel(work, columns)
    device, model = _device(on, hardware, model)
    from ..predict.explain import explain as run

    result = run(
        work, device, config=build_config(columns), model=model, what_if=changes, level=level
    )
    if plot is not None:
        from ..report.result_views import explanation_view

        save_plot(explanation_view(result, command=command()), plot)
    if trace is not None:
        from ..report.traces import explanation_timeline

        save_trace(explanation_timeline(result), trace)
    if json:
        return write_json(result)
    from .render import print_result

    return print_result(
        result,
        [plain(row) for row in result.rows],
        title=_title(work, shape, device),
    )


def _one_column(row: dict[str, Any]) -> dict[str, Any]:
    """Fold a configuration's columns into one, so that a ranking fits a terminal."""
    from ..store import CONFIG_COLUMNS

    config = " ".join(f"{k}={row[k]}" for k in row if k in CONFIG_COLUMNS)
    rest = {k: v for k, v in row.items() if k not in CONFIG_COLUMNS}
    rank = {k: rest.pop(k) for k in ("rank",) if k in rest}
    return {**rank, "configuration": config, **rest} if config else row


def tune(  # noqa: PLR0913, PLR0917
    op: o.Op,
    shape: o.Shape,
    dtype: o.Dtype = None,
    on: o.On = None,
    hardware: o.UserHardware = None,
    batch: o.Batch = None,
    layout: o.Layout = None,
    kernel: o.Kernel = None,
    objective: Annotated[str, typer.Option(help="time, energy or edp.")] = "time",
    top: Annotated[int, typer.Option(help="Configurations to show.", min=1)] = 10,
    model: o.Model = None,
    plot: o.Plot = None,
    json: o.Json = False,
) -> None:
    """Rank kernel configurations by time, energy or both."""
    check_plot(plot)
    _choice("objective", objective, OBJECTIVES)
    from ..kernels.asked import build_config

    build_config({"kernel": kernel} if kernel else {})
    work = parse_op(op, shape, dtype=dtype, batch=batch, layout=layout)
    device, model = _device(on, hardware, model)
    from ..ops import Gemm

    if not isinstance(work, Gemm):
        raise UnsupportedError(
            f"tune ranks kernel configurations of gemm; of {op}, `explain` predicts every variant"
        )
    from ..predict.tune import tune as run

    result = run(work, device, objective=objective, model=model, kernel=kernel)
    if plot is not None:
        from ..report.result_views import tuned_view

        save_plot(tuned_view(result, top=top, command=command()), plot)
    if json:
        found = document(result)
        if isinstance(found, dict) and isinstance(found.get("rows"), list):
            found["rows"] = found["rows"][:top]
        return write_json(found)
    from .render import print_result

    title = f"{_title(work, shape, device)}, best {objective} first"
    hidden = {"energy_low_j", "energy_high_j", "basis"} | ({"edp_j_s"} - {f"{objective}_j_s"})
    rows = [{k: v for k, v in plain(r).items() if k not in hidden} for r in result.rows[:top]]
    shown = [_one_column(row) for row in rows]
    return print_result(result, shown, title=title)
