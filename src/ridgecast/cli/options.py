"""The options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Batch",
    "Cache",
    "ConfigPairs",
    "Dtype",
    "Json",
    "Kernel",
    "Layout",
    "Level",
    "Model",
    "On",
    "Op",
    "Plot",
    "Shape",
    "SplitK",
    "Stages",
    "Tile",
    "TileK",
    "TileM",
    "TileN",
    "Trace",
    "UserHardware",
    "WhatIf",
]

Op = Annotated[str, typer.Argument(help="Operation; see `ridgecast ops`.", show_default=False)]
Shape = Annotated[
    list[str],
    typer.Argument(help="MxNxK for gemm, FIELD=VALUE ... for others.", show_default=False),
]
Dtype = Annotated[str | None, typer.Option(help="Number format of the operands; by default bf16.")]
On = Annotated[
    str | None, typer.Option(help="Device; see `ridgecast hardware`.", show_default=False)
]
UserHardware = Annotated[
    Path | None,
    typer.Option("--hardware", help="Your own device (a TOML file) instead of --on."),
]
WhatIf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=CHANGE", help="Change the device and predict again: +20%; repeatable."
    ),
]
Batch = Annotated[int | None, typer.Option(help="Multiplications or sequences in one call.")]
Layout = Annotated[
    str | None, typer.Option(help="gemm: storage of A and B: nn, nt, tn (default) or tt.")
]
Kernel = Annotated[
    str | None,
    typer.Option(help="library (the default), tiled, cutlass_simt, cutlass_tensor or clblast."),
]
Tile = Annotated[int | None, typer.Option(help="Edge of the square tile of the tiled kernel.")]
TileM = Annotated[int | None, typer.Option(help="Rows of D that one block computes.")]
TileN = Annotated[int | None, typer.Option(help="Columns of D that one block computes.")]
TileK = Annotated[int | None, typer.Option(help="Step along k.")]
Stages = Annotated[int | None, typer.Option(help="Steps in flight in shared memory.")]
SplitK = Annotated[int | None, typer.Option(help="Parts of the contraction.")]
ConfigPairs = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="KEY=VALUE", help="Any other parameter; repeatable."),
]
Cache = Annotated[str | None, typer.Option(help="State of the L2 before the call: hot or cold.")]
Model = Annotated[Path | None, typer.Option(help="Folder of a trained model to use.")]
Level = Annotated[float, typer.Option(help="Share of cases that the interval covers.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw it: a .png, .svg or .html file."),
]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Timeline as .json for ui.perfetto.dev."),
]
