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
    "Shape",
    "Size",
    "UserHardware",
]

Op = Annotated[str, typer.Argument(help="Operation; see `ridgecast ops`.", show_default=False)]
Shape = Annotated[str, typer.Argument(help="Sizes, for gemm MxNxK.", show_default=False)]
Dtype = Annotated[str, typer.Option(help="Number format of the operands.")]
On = Annotated[
    str | None, typer.Option(help="Device; see `ridgecast hardware`.", show_default=False)
]
UserHardware = Annotated[
    Path | None,
    typer.Option("--hardware", help="Your own device (a TOML file) instead of --on."),
]
Batch = Annotated[int, typer.Option(help="Multiplications in one call.")]
Layout = Annotated[str, typer.Option(help="Storage of A and B: nn, nt, tn or tt.")]
Kernel = Annotated[str | None, typer.Option(help="Kernel family; default: the library's own.")]
Size = Annotated[int | None, typer.Option(show_default=False)]
ConfigPairs = Annotated[
    list[str] | None, typer.Option("--config", help="Any other parameter, KEY=VALUE; repeatable.")
]
Cache = Annotated[str | None, typer.Option(help="State of the L2 before the call: hot or cold.")]
Model = Annotated[Path | None, typer.Option(help="Folder of a trained model to use.")]
Level = Annotated[float, typer.Option(help="Share of cases that the interval covers.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
