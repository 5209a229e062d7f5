"""Scores from raw measurements: of a given model, or of models trained on the rest of a split.

Owns what may be called held out: which rows a model has seen, and the way from measurements through
`train` and `predict_table`, end to end, to a table of predictions beside the truth.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, RidgecastError, SpecError, unknown_name
from ..hardware import get
from ..kernels.bound import bound_of
from ..predict.batch import predict_table
from ..predict.bundle import FORMAT, Bundle, Entry, open_bundle
from ..predict.conformal import DISTANCES
from ..predict.prior import fit_prior, save_prior
from ..predict.scores import derating, score_columns
from ..predict.siblings import Relative, Siblings, fit_siblings, save_siblings
from ..predict.time_model import LEAST_ROWS, Shapes, fit_middle, save_time_model
from ..predict.train import train
from ..predict.utilisation import FitOptions
from ..store import Split, Table, chip_family, make_split, select, write_measurements
from ..store.tables import factorize
from .published import with_buckets
from .report import row

__all__ = ["DEFAULT_SPLITS", "Points", "held_out", "points_of", "score_model", "score_splits"]

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Progress = Callable[[str], None]
Rows = list[dict[str, Any]]
DEFAULT_SPLITS = ("random", "unseen_shape", "off_grid", "frontier", "unseen_device")
LEAST_TEST = 5
"""Held-out rows under which nothing is scored."""

# what a point that a model has not seen is to it, by its distance from the training shapes
_SPLIT_OF = {
    "seen_pair": "random", "unseen_pair": "unseen_shape", "one_off_grid": "unseen_shape",
    "off_grid": "off_grid", "frontier": "frontier", "outside": "frontier",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Points:
    """Distinct measured points of one device, format and collection; repeats became their median.

    `table` has the canonical columns.
    """

    hardware: str
    dtype: str
    collection: str
    table: Table

    @property
    def labels(self) -> dict[str, str]:
        """Columns of the accuracy table that say what this is."""
        return {"hardware": self.hardware, "dtype": self.dtype, "collection": self.collection}

    @property
    def shapes(self) -> Shapes:
        """Sizes as float64."""
        return Shapes(*(np.asarray(self.table[c], float) for c in ("m", "n", "k", "batch")))

    @property
    def time(self) -> F64:
        """Measured times [s]."""
        return np.asarray(self.table["time_s"], float)

    def roofline(self) -> F64:
        """Return max(flops / rate, unique bytes / memory bandwidth) [s] of each point."""
        return bound_of(self.shapes.problem(self.dtype), get(self.hardware), "cold")

    def take(self, rows: Any) -> Points:
        """Points by mask or position."""
        return Points(self.hardware, self.dtype, self.collection, select(self.table, rows))


def points_of(table: Table) -> tuple[list[Points], list[str]]:
    """Split measurements of library GEMMs into points; say which rows were left out.

    A point that was measured twice is one point, so that no split can part it from itself.
    """
    library = np.isin(table["kernel"].astype(str), ("library", "")) & (table["op"] == "gemm")
    usable = library & table["valid"].astype(bool) & (table["time_s"] > 0)
    notes: list[str] = []
    if (~library).any():
        kinds = sorted({str(k) for k in table["kernel"][~library].tolist()})
        notes.append(
            f"{int((~library).sum())} rows are not library GEMMs ({', '.join(kinds)}) and are not "
            "scored here; benchmarks/clblast_configs.py scores CLBlast configurations"
        )
    if (library & ~usable).any():
        notes.append(f"{int((library & ~usable).sum())} rows are marked as not valid")
    table = select(table, np.flatnonzero(usable))
    if not len(table["m"]):
        raise NoDataError("no usable row: " + ("; ".join(notes) or "the tables are empty"))
    code = np.zeros(len(table["m"]), np.int64)
    for name in ("hardware", "dtype", "collection"):
        codes, values = factorize(table[name])
        code = code * len(values) + codes
    found: list[Points] = []
    for one in np.unique(code):
        own = select(table, np.flatnonzero(code == one))
        hardware, dtype, collection = (str(own[c][0]) for c in ("hardware", "dtype", "collection"))
        try:
            hardware = get(hardware).name
            get(hardware).rate(dtype)
        except RidgecastError as error:
            notes.append(f"{hardware} {dtype}: {error}")
            continue
        found.append(Points(hardware, dtype, collection, _distinct(own)))
    if not found:
        raise NoDataError("no usable row: " + "; ".join(notes))
    return found, notes


def _distinct(table: Table) -> Table:
    sizes = np.stack([np.asarray(table[c], float) for c in ("m", "n", "k", "batch")], axis=1)
    _, first, inverse = np.unique(sizes, axis=0, return_index=True, return_inverse=True)
    time = np.asarray(table["time_s"], float)
    order = np.lexsort((time, inverse.ravel()))
    groups = np.split(time[order], np.cumsum(np.bincount(inverse.ravel()))[:-1])
    out = select(table, first)
    out["time_s"] = np.array([np.median(group) for group in groups])
    return out


# ------------------------------------------------------------------------- a split, end to end


def held_out(
    points: Points, split: Split, *, seed: int = 0, options: FitOptions | None = None
) -> Table:
    """Train on the split's training rows, predict its test rows with `predict_table`.

    Returns truth_s, time_s, time_low_s, time_high_s, roofline_s, derated_s (the factor fitted on
    the training rows) and the outputs of `predict_table`, a row for each test row.
    Raises NoDataError when the training rows are too few.
    """
    known, unseen = points.take(split.train), points.take(split.test)
    with tempfile.TemporaryDirectory(prefix="ridgecast-accuracy-") as work:
        raw = Path(work) / "training.parquet"
        # power is not scored here: without it no power model is fitted
        power = np.zeros(len(known.time), dtype=bool)
        write_measurements(raw, {**known.table, "power_valid": power})
        folder = Path(work) / "model"
        train([raw], folder, seed=seed, jobs=1, options=options, keep_points=False)
        return _beside_truth(unseen, folder, derating(known.time, known.roofline()))


def _beside_truth(
    points: Points, folder: Path, factor: float | None, collection: str = ""
) -> Table:
    asked: Table = {c: points.table[c] for c in ("op", "m", "n", "k", "batch")}
    for name, value in (("hardware", points.hardware), ("dtype", points.dtype),
                        ("collection", collection)):  # fmt: skip
        asked[name] = np.full(len(points.time), value, dtype=object)
    done = predict_table(asked, model=folder)
    roofline = points.roofline()
    done |= {"truth_s": points.time, "roofline_s": roofline}
    if factor is not None:
        done["derated_s"] = roofline * factor
    return done


def _scored(done: Table, reason: str, **labels: Any) -> Rows:
    """Rows of the accuracy table for predictions beside the truth."""
    ok = done["status"] == "ok"
    if (~ok).any():
        why = str(done["reason"][~ok][0])
        reason = f"{reason}; {int((~ok).sum())} rows without an answer: {why}"
    if ok.sum() < LEAST_TEST:
        return [_unscored(f"{int(ok.sum())} held-out rows with an answer; {reason}", **labels)]
    names = ("truth_s", "time_s", "time_low_s", "time_high_s", "roofline_s", "derated_s")
    held = {name: np.asarray(done[name], float)[ok] for name in names if name in done}
    return list(with_buckets(score_columns(held), target="time", reason=reason, **labels))


def _unscored(reason: str, **labels: Any) -> dict[str, Any]:
    return row({}, target="time", status="no_score", reason=reason, **labels)


def score_splits(
    table: Table,
    splits: Sequence[str] | None = None,
    *,
    seed: int = 0,
    train_rows: int | None = None,
    options: FitOptions | None = None,
    progress: Progress = lambda line: None,
) -> tuple[Rows, list[str]]:
    """Score every split of every device, format and collection by training on its rest.

    `train_rows` trains on so many rows of the rest only, drawn at random.
    Returns rows of the accuracy table and notes on what was left out.
    Raises SpecError for a split that is none of DEFAULT_SPLITS, NoDataError without usable rows.
    """
    wanted = tuple(splits or DEFAULT_SPLITS)
    for name in wanted:
        if name not in DEFAULT_SPLITS:
            raise SpecError(unknown_name("split", name, DEFAULT_SPLITS))
    groups, notes = points_of(table)
    rows: Rows = []
    for points in groups:
        for name in wanted:
            if name == "unseen_device":
                continue
            labels = {**points.labels, "split": name}
            progress(f"{points.hardware} {points.dtype} {points.collection}: {name}")
            try:
                split = _thinned(make_split(name, points.table, seed=seed), train_rows, seed)
                done = held_out(points, split, seed=seed, options=options)
            except NoDataError as error:
                rows.append(_unscored(str(error), **labels))
            else:
                rows += _scored(done, split.describe, **labels)
    several = len({points.hardware for points in groups}) > 1
    if "unseen_device" in wanted and (several or splits is not None):
        rows += _unseen_devices(groups, seed, options, progress)
    return rows, notes


def _thinned(split: Split, rows: int | None, seed: int) -> Split:
    """Keep `rows` random training rows of a split."""
    known = np.flatnonzero(split.train)
    if rows is None or rows >= len(known):
        return split
    train = np.zeros(len(split.train), dtype=bool)
    train[np.random.default_rng(seed).choice(known, rows, replace=False)] = True
    return Split(split.name, train, split.test, f"{split.describe}; {rows} rows to learn from")


# ------------------------------------------------------------------------- devices held out


def _unseen_devices(
    groups: list[Points], seed: int, options: FitOptions | None, progress: Progress
) -> Rows:
    """Score each device as its others answer for it: without its chip family, then with it."""
    bursts = [p for p in groups if not p.table["sustained"].any()
              and (p.table["launch"] != "stream").all()]  # fmt: skip
    rows: Rows = []
    relatives: list[Relative] = []
    for device in sorted({p.hardware for p in bursts}):
        kin = {p.hardware for p in bursts if chip_family(p.hardware) == chip_family(device)}
        cases = [("unseen_device", kin)]
        if kin != {device}:
            cases.append(("unseen_device (family known)", {device}))
            relatives = relatives or _relatives(bursts, seed, options, progress)
        for name, left_out in cases:
            progress(f"{device}: {name}")
            rest = [p for p in bursts if p.hardware not in left_out]
            own = [p for p in bursts if p.hardware == device]
            known = [r for r in relatives if left_out == {device} and r.hardware != device]
            rows += _by_others(own, rest, known, name, seed)
    return rows


def _relatives(
    groups: list[Points], seed: int, options: FitOptions | None, progress: Progress
) -> list[Relative]:
    """Models of all devices of chip families that several devices were measured of."""
    count = Counter(chip_family(name) for name in {p.hardware for p in groups})
    found: list[Relative] = []
    o = replace(options or FitOptions(), seed=seed)
    for p in groups:
        if count[chip_family(p.hardware)] > 1 and len(p.time) >= LEAST_ROWS:
            progress(f"{p.hardware} {p.dtype} {p.collection}: for its chip family")
            model = fit_middle(p.shapes, p.time, p.dtype, get(p.hardware), o)
            found.append(Relative(p.hardware, p.dtype, p.collection, p.shapes, p.time, model))
    return found


def _by_others(
    own: list[Points], rest: list[Points], relatives: list[Relative], name: str, seed: int
) -> Rows:
    """Score a device's points by a folder of what the others teach."""
    devices = sorted({p.hardware for p in rest})
    if len(devices) < 2:
        reason = f"{len(devices)} other device(s) to learn from, need 2"
        return [_unscored(reason, **p.labels, split=name) for p in own]
    prior = fit_prior([(p.hardware, p.dtype, p.shapes, p.time) for p in rest], seed=seed)
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="ridgecast-accuracy-") as work:
        folder = Path(work)
        for part in ("prior", "siblings"):
            (folder / part).mkdir()
        save_prior(prior, folder / "prior")
        save_siblings(fit_siblings(relatives, seed=seed) or Siblings(), folder / "siblings")
        lines = [_line(r, folder / f"time-{i}") for i, r in enumerate(relatives)]
        (folder / "card.json").write_text(json.dumps({"format": FORMAT, "models": lines}))
        for p in own:
            same = [q for q in rest if q.dtype == p.dtype]
            factor = None
            if same:  # the derated roofline of an unseen device is derated as the others are
                time, roofline = ([f(q) for q in same] for f in (lambda q: q.time, Points.roofline))
                factor = derating(np.concatenate(time), np.concatenate(roofline))
            done = _beside_truth(p, folder, factor)
            rows += _scored(done, f"learned from {', '.join(devices)}", **p.labels, split=name)
    return rows


def _line(relative: Relative, folder: Path) -> dict[str, Any]:
    """Save a relative's model; return its line of the index."""
    folder.mkdir()
    save_time_model(relative.model, folder)
    names = {n: getattr(relative, n) for n in ("hardware", "dtype", "collection")}
    return {**names, "folder": folder.name, "launch": "graph", "sustained": False,
            "rows": len(relative.time)}  # fmt: skip


# ------------------------------------------------------------------------- a given model


def score_model(
    model: str | Path, table: Table, *, progress: Progress = lambda line: None
) -> tuple[Rows, list[str]]:
    """Score a model folder on the rows of a table that it was not trained on.

    Every device, format and collection gets a row with split `held_out` (all that is left) and
    one for each split that its points amount to. A folder that keeps its points is asked for them;
    of one that does not, every point of a known (n, k) pair within the trained sizes counts as
    trained on.
    """
    bundle = open_bundle(model)
    groups, notes = points_of(table)
    rows: Rows = []
    for points in groups:
        progress(f"{points.hardware} {points.dtype} {points.collection}")
        rows += _of_model(bundle, points)
    return rows, notes


def _of_model(bundle: Bundle, points: Points) -> Rows:
    same = any(
        e.hardware == points.hardware and e.dtype == points.dtype
        and e.collection == points.collection for e in bundle.entries
    )  # fmt: skip
    collection = points.collection if same else ""
    entry = bundle.entry(points.hardware, points.dtype, collection)
    if entry is None:
        relative = bundle.relative(get(points.hardware), points.dtype)
        name = "unseen_dtype" if relative else "unseen_device"
        text = f"no {points.dtype} model of {points.hardware} in the folder"
        return _scored(_beside_truth(points, bundle.path, None), text, **points.labels, split=name)
    trained, reason = _trained_on(bundle, entry, points)
    left = points.take(~trained)
    if len(left.time) < LEAST_TEST:
        return [_unscored(reason, **points.labels, split="held_out")]
    reason += f"; model of {entry.collection}"
    model = bundle.time_model(entry)
    done = _beside_truth(left, bundle.path, model.card.get("derating"), collection)
    rows = _scored(done, reason, **points.labels, split="held_out")
    kind = np.array([_SPLIT_OF[d] for d in DISTANCES])[model.domain.distance(*left.shapes)]
    for name in ("random", "unseen_shape", "off_grid", "frontier"):
        here = kind == name
        if here.sum() >= LEAST_TEST:
            part = {key: np.asarray(column)[here] for key, column in done.items()}
            rows += _scored(part, reason, **points.labels, split=name)
    return rows


def _trained_on(bundle: Bundle, entry: Entry, points: Points) -> tuple[Mask, str]:
    """Points that the model was, or may have been, fitted on; and how many, in words."""
    shapes, domain = points.shapes, bundle.time_model(entry).domain
    pair = np.isin(shapes.n * 2.0**31 + shapes.k, domain.pairs)
    within = (shapes.m >= domain.low[0]) & (shapes.m <= domain.high[0])
    within &= shapes.m * shapes.n * shapes.k * shapes.batch <= domain.most_work
    maybe = pair & within
    kept = bundle.measured(entry)
    if kept is None:
        return maybe, (
            f"{int(maybe.sum())} of {len(maybe)} points may have been trained on and are left out "
            "(the folder does not keep its points)"
        )
    trained = np.isfinite(kept.find(shapes)) | (maybe & (shapes.batch > 1))
    return trained, f"{int(trained.sum())} of {len(trained)} points were trained on, left out"
