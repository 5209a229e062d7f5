"""The command that runs the whole study: sweep, models, scores, figures, report."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MissingExtraError, SpecError, unknown_name
from .options import Json
from .output import write_json

if TYPE_CHECKING:
    from ..accuracy.study import StudyOptions, StudyResult
    from ..hardware import Hardware

__all__ = ["study"]

PROVIDERS = ("numba", "opencl", "cuda", "replay")
_SECONDS = {True: 25.0, False: 150.0}  # of scoring, after which no further seed is drawn
_REPEATS = {True: 2, False: 4}


def study(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer points: within 2 minutes on 2 cores, not 10.")
    ] = False,
    replay: Annotated[
        str | None, typer.Option(help="Run it on published rows instead: gpperf.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Measured rows (file or folder) to study; nothing is measured."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, its data and the rows.")] = Path(
        "study"
    ),
    provider: Annotated[
        str | None,
        typer.Option(help="What runs the kernels: numba, opencl, cuda, or replay with --data."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Cores that the numba kernels use; by default all.")
    ] = None,
    json: Json = False,
) -> None:
    """Sweep tile configurations, learn time, power and energy, and write the report.

    Works with or without a GPU. A study that was stopped goes on with the same --out.
    """
    begun = time.monotonic()
    _check(replay, provider, data)
    _need_extra()
    told = _Progress()
    if replay is not None:
        result, hardware, rows = _replayed(data, quick, told)
    else:
        result, hardware, rows = _own(out, quick, provider, data, threads, told)
    from ..report.study_page import write_study

    told("drawing the report")
    page = write_study(result, out, hardware=hardware, every_row=rows)
    model = result.fitted["ridgecast"].model
    if model is not None:
        model.save(out / "model")
    elapsed = time.monotonic() - begun
    if json:
        return write_json({**result.to_dict(), "report": str(page), "elapsed_s": elapsed})
    return _show(result, page, elapsed)


def _check(replay: str | None, provider: str | None, data: Path | None) -> None:
    from ..accuracy.study_gpperf import REPLAYS

    if replay is not None and replay not in REPLAYS:
        raise SpecError(unknown_name("study to replay", replay, REPLAYS))
    if provider is not None and provider not in PROVIDERS:
        raise SpecError(unknown_name("provider", provider, PROVIDERS))
    if replay is not None and provider is not None:
        raise SpecError("--replay takes published rows; it needs no --provider")
    if data is not None and not data.exists():
        raise SpecError(f"--data: {data} does not exist")
    if provider == "replay" and data is None:
        raise SpecError("--provider replay: say which recording with --data FOLDER or FILE")
    if data is not None and provider not in (None, "replay"):
        raise SpecError(f"--data holds measured rows; --provider {provider} would measure others")


def _need_extra() -> None:
    """Refuse before anything is measured, not after."""
    from importlib.util import find_spec

    missing = [name for name in ("sklearn", "matplotlib") if find_spec(name) is None]
    if missing:
        names = " and ".join({"sklearn": "scikit-learn"}.get(n, n) for n in missing)
        raise MissingExtraError(f"the study needs {names}: pip install 'ridgecast[study]'")


class _Progress:
    """Lines on stderr: stages of the study, and every so often where the sweep stands."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        typer.echo(f"[{time.monotonic() - self._begun:5.0f} s] {text}", err=True)

    def sweep(self, progress: Any) -> None:
        """One line every five seconds, one that overwrites itself on a terminal."""
        now = time.monotonic()
        if now - self._last < (0.5 if sys.stderr.isatty() else 5.0):
            return
        self._last = now
        text = (
            f"[{now - self._begun:5.0f} s] sweep: {progress.done} of {progress.total} points, "
            f"about {progress.eta:.0f} s left"
        )
        typer.echo(f"\r{text}   " if sys.stderr.isatty() else text, err=True,
                   nl=not sys.stderr.isatty())  # fmt: skip


def _options(quick: bool, **more: Any) -> StudyOptions:
    from ..accuracy.study import StudyOptions

    return StudyOptions(repeats=_REPEATS[quick], seconds=_SECONDS[quick], **more)


def _meta() -> dict[str, Any]:
    from .. import __version__
    from ..measure.record import command_line

    created = datetime.now(UTC).isoformat(sep=" ", timespec="minutes")
    return {"created": created, "ridgecast": __version__, "command": command_line()}


def _replayed(
    data: Path | None, quick: bool, told: _Progress
) -> tuple[StudyResult, Hardware | None, Any]:
    from ..accuracy.study import run_study, with_published
    from ..accuracy.study_gpperf import NO_POWER, beside_published, load_gpperf

    found = load_gpperf(data)
    result = run_study(
        found.table, found.hardware, options=_options(quick, raw_random=True),
        meta={**_meta(), **found.meta, "notes": list(found.notes)}, no_power=NO_POWER,
        swept=found.swept, progress=told,
    )  # fmt: skip
    return with_published(result, beside_published(result)), found.hardware, found.table


def _own(
    out: Path, quick: bool, provider: str | None, data: Path | None, threads: int | None,
    told: _Progress,
) -> tuple[StudyResult, Hardware | None, Any]:  # fmt: skip
    from ..accuracy.study import run_study
    from ..accuracy.study_sweep import collect, read_rows

    if data is not None and provider is None:
        found = read_rows(data)
    else:
        told(f"sweep into {out / 'sweep'}; interrupt it at any time, the same command goes on")
        found = collect(
            out / "sweep", provider=provider or "", quick=quick, recording=data, threads=threads,
            progress=told.sweep,
        )  # fmt: skip
    result = run_study(
        found.table, found.hardware, options=_options(quick), meta={**_meta(), **found.meta},
        no_power=found.no_power, progress=told,
    )  # fmt: skip
    return result, found.hardware, found.table


def _show(result: StudyResult, page: Path, elapsed: float) -> None:
    from .render import print_rows, print_text

    for warning in result.meta.get("warnings", ()):
        print_text(f"! {warning}")
    for sentence in result.conclusions["sentences"]:
        print_text(f"- {sentence}")
    timed = [s for s in result.scores if s["target"] == "time"]
    rows = [
        {"split": s["split"], "model": s["model"], "rows": s["rows"], "mape": s["mape"],
         "median_error": s["median"], "coverage": s.get("coverage")}
        for s in timed
        if s["status"] == "ok"
    ]  # fmt: skip
    print_rows(rows, title="Error of time on rows held out, by split")
    for name, why in {s["split"]: s["reason"] for s in timed if s["status"] != "ok"}.items():
        print_text(f"No score of {name}: {why}")
    floor = result.floor["mean"]
    if floor is not None:
        print_text(f"Repeat floor: two labels of one point differ by {100 * floor:.1f} % (mean)")
    ours = result.ranking.get("ridgecast", {})
    if ours.get("shapes"):
        print_text(
            f"Configuration picked for {ours['shapes']} unseen shapes: within 5 % of the measured "
            f"best at {100 * ours['within']:.0f} % of them"
        )
    for row in result.published.get("rows", ())[:1]:
        print_text(
            f"Published: R2 {row['r2']}, mean error {100 * row['mape']:.2f} % ({row['split']})"
        )
    print_text(f"{page}: written after {elapsed:.0f} s")
