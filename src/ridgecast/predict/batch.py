"""The batch contract: a table in, the same table with predictions out.

Owns column checks, the grouping of rows that share a question, and the assembly of the output.
A row that cannot be answered gets a status, a reason and nulls, and never stops the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import dtype as find_dtype
from ..errors import RidgecastError, SpecError, UnsupportedError, unknown_name
from ..hardware import Hardware, resolve
from ..kernels.bound import check_cache
from ..kernels.config import ClblastConfig
from ..ops import op_names
from ..ops.gemm import LAYOUTS, MAX_DIM
from ..store.schema import CONFIG_COLUMNS
from ..store.tables import Table, factorize, length, numeric, require_columns
from .bundle import Bundle, open_bundle
from .chunks import on_all_cores, parts_of
from .ladder import KERNELS, Question, answer
from .operator_rows import text_of
from .throttle import recapped, throttling
from .time_model import Shapes
from .trees import compile_walk

__all__ = ["OUTPUTS", "predict_table"]

F64 = npt.NDArray[np.float64]
OUTPUTS = (
    "time_s", "time_low_s", "time_high_s", "power_w", "power_low_w", "power_high_w",
    "energy_j", "energy_low_j", "energy_high_j", "memory_bytes", "bound_s",
)  # fmt: skip
_TEXTS = ("limiter", "basis", "status", "reason")
_KEYS = (
    "op", "hardware", "dtype", "kernel", "layout", "cache", "collection", "out_dtype", "b_dtype",
)  # fmt: skip
_DEFAULTS = {"kernel": "library", "layout": "tn", "cache": "hot", "collection": "",
             "out_dtype": "", "b_dtype": ""}  # fmt: skip
_COMPILED = 100_000  # rows from which on a compiled walk through the trees pays for its import
_LIMITERS = np.array(["compute", "memory", "launch"], dtype=object)
_EPILOGUE = ("beta", "epilogue_bytes")


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that share a question."""

    rows: npt.NDArray[np.int64]
    keys: dict[str, str]


def predict_table(
    table: Mapping[str, Any],
    *,
    model: str | Path | None = None,
    level: float = 0.9,
    hardware: Mapping[str, Hardware] | None = None,
) -> Table:
    """Predict every row of a table.

    `table` maps column names to equally long columns: op, hardware, and the operation's own fields
    (`ridgecast ops NAME`). Of gemm: dtype, m, n, k, and where wanted batch, layout, out_dtype,
    beta, epilogue_bytes, kernel, tile parameters. Further columns of any: cache (hot or cold),
    collection. Operations may be mixed; fields of others are then null. `model` is a folder made by
    `ridgecast train`, by default the shipped one; `level` the coverage of the intervals;
    `hardware` adds devices by name. Returns the input columns and OUTPUTS in SI (NaN = null),
    limiter, basis, status ("ok", "invalid", "no_answer") and reason.

    Raises SpecError for missing columns, columns of different length, a level outside
    [0.5, 0.99], or a model folder that cannot be read.
    """
    if not 0.5 <= level <= 0.99:
        raise SpecError(f"level: got {level}, need 0.5 to 0.99 (a coverage, such as 0.9)")
    columns: Table = {name: np.asarray(column) for name, column in table.items()}
    require_columns(columns, ("op", "hardware"))
    rows = length(columns)
    bundle = open_bundle(model)
    if rows >= _COMPILED:
        compile_walk()
    others = _other_ops(columns)
    if not others:
        require_columns(columns, ("dtype", "m", "n", "k"))
    out: Table = {name: np.full(rows, np.nan) for name in OUTPUTS}
    out |= {name: np.full(rows, "", dtype=object) for name in _TEXTS}
    mine = np.ones(rows, bool)
    for name, at in list(others.items()):
        mine[at] = False
        if not name or name not in op_names():
            out["status"][at], out["reason"][at] = "invalid", unknown_name("op", name, op_names())
            del others[name]
    if others:
        from .operators import fill_operators

        fill_operators(out, columns, others, bundle, level, hardware or {})
    if mine.any():
        require_columns(columns, ("dtype", "m", "n", "k"))
        shapes, good = _shapes(columns, mine, out)
        config = _config(columns, rows)
        for group in _groups(columns, good):
            _fill(out, group, shapes, config, bundle, level, hardware or {})
    return {**{k: v for k, v in columns.items() if k not in out}, **out}


def _other_ops(columns: Table) -> dict[str, npt.NDArray[np.int64]]:
    """Rows of each operation other than GEMM, by its name, be it known or not."""
    codes, found = factorize(columns["op"])
    names = [text_of(v) for v in found]
    if set(names) <= {"gemm"}:
        return {}
    return {name: np.flatnonzero(codes == i) for i, name in enumerate(names) if name != "gemm"}


def _shapes(
    columns: Table, mine: npt.NDArray[np.bool_], out: Table
) -> tuple[Shapes, npt.NDArray[np.bool_]]:
    """Sizes as float64; rows of `mine` with impossible ones are marked invalid in `out`."""
    sizes: list[F64] = []
    rows, good = len(mine), mine.copy()
    for name in ("m", "n", "k", "batch"):
        if name == "batch" and name not in columns:
            sizes.append(np.ones(rows))
            continue
        values, _ = numeric(columns, name)
        if name == "batch":
            values = np.where(np.isnan(values), 1.0, values)
        wrong = ~((values >= 1) & (values <= MAX_DIM) & (values == np.floor(values)))
        if wrong.any():
            fresh = wrong & good
            got = columns[name][fresh]
            out["status"][fresh] = "invalid"
            out["reason"][fresh] = [
                f"gemm.{name}: got {v}, need an integer from 1 to {MAX_DIM}" for v in got.tolist()
            ]
            good &= ~wrong
        sizes.append(values)
    return Shapes(*sizes), good


def _config(columns: Table, rows: int) -> dict[str, F64]:
    """Tile parameters, and `extra` terms of the epilogue, as numbers; NaN where not given."""
    found = {name: numeric(columns, name)[0] for name in CONFIG_COLUMNS if name in columns}
    for name in _EPILOGUE:
        values = numeric(columns, name)[0] if name in columns else np.zeros(rows)
        found[name] = np.nan_to_num(values, nan=0.0)
    return found


def _groups(columns: Table, good: npt.NDArray[np.bool_]) -> Iterator[_Group]:
    """Rows grouped by the text columns that make the question."""
    rows = len(good)
    code = np.zeros(rows, dtype=np.int64)
    values: dict[str, list[str]] = {}
    for name in _KEYS:
        if name not in columns:
            values[name] = [_DEFAULTS[name]]
            continue
        codes, found = factorize(columns[name])
        values[name] = [text_of(v) or _DEFAULTS.get(name, "") for v in found]
        code = code * len(found) + codes
        if code.size and code.max() > 2**40:  # before the next product could overflow
            raise SpecError("table: too many distinct texts in its columns; split the table")
    present = np.unique(code[good])
    for one in present:
        at = np.flatnonzero(good & (code == one)) if len(present) > 1 else np.flatnonzero(good)
        rest, keys = int(one), dict[str, str]()
        for name in reversed(_KEYS):
            rest, index = divmod(rest, len(values[name])) if name in columns else (rest, 0)
            keys[name] = values[name][index]
        yield _Group(at, keys)


def _fill(
    out: Table,
    group: _Group,
    shapes: Shapes,
    config: dict[str, F64],
    bundle: Bundle,
    level: float,
    devices: Mapping[str, Hardware],
) -> None:
    """Answer one group, in chunks on all cores."""
    keys = group.keys
    try:
        question = _question(keys, level, devices)
    except (RidgecastError, OSError) as error:
        kind = "no_answer" if isinstance(error, UnsupportedError) else "invalid"
        out["status"][group.rows], out["reason"][group.rows] = kind, str(error)
        return

    def run(rows: npt.NDArray[np.int64]) -> None:
        _answer(out, rows, question, shapes, config, bundle)

    on_all_cores(run, parts_of(group.rows))


def _question(keys: Mapping[str, str], level: float, devices: Mapping[str, Hardware]) -> Question:
    if keys["kernel"] not in KERNELS:
        raise SpecError(unknown_name("kernel", keys["kernel"], KERNELS))
    if keys["layout"] not in LAYOUTS:
        raise SpecError(unknown_name("layout", keys["layout"], LAYOUTS))
    check_cache(keys["cache"])
    name = keys["hardware"]
    device = devices[name] if name in devices else resolve(name)
    wanted = find_dtype(keys["dtype"]).name
    device.rate(wanted)
    if keys["b_dtype"] and find_dtype(keys["b_dtype"]).name != wanted:
        raise UnsupportedError(
            f"gemm.b_dtype: {keys['b_dtype']} beside {wanted}: mixed operands are not predicted; "
            "for stored weights use a weight-only dtype such as int4_wo or int8_wo"
        )
    out_dtype = find_dtype(keys["out_dtype"]).name if keys["out_dtype"] else ""
    cache: Any = keys["cache"]
    return Question(device, wanted, keys["kernel"], cache, keys["collection"], level, out_dtype)


def _answer(
    out: Table,
    rows: npt.NDArray[np.int64],
    q: Question,
    shapes: Shapes,
    config: dict[str, F64],
    bundle: Bundle,
) -> None:
    """Fill the rows of one chunk."""
    part = shapes.take(rows)
    settings = {n: v[rows] for n, v in config.items() if n not in _EPILOGUE}
    for values in settings.values():
        given = np.isfinite(values)
        if given.any() and not given.all():  # rows that say it and rows that leave the default
            for some in (rows[given], rows[~given]):
                _answer(out, some, q, shapes, config, bundle)
            return
    settings = {n: v for n, v in settings.items() if np.isfinite(v).all()}
    try:
        if q.kernel == "clblast":
            rows, part = _clblast(out, rows, q, part, config, bundle)
        else:
            times = answer(q, part, settings, bundle)
            out["time_s"][rows], out["bound_s"][rows] = times.time, times.bound
            out["time_low_s"][rows], out["time_high_s"][rows] = times.low, times.high
            out["basis"][rows], out["reason"][rows] = times.basis, times.reason
            out["limiter"][rows] = times.limiter
    except RidgecastError as error:
        if settings and len(rows) > 1:  # one bad configuration must not stop the others
            for half in np.array_split(rows, 2):
                _answer(out, half, q, shapes, config, bundle)
            return
        kind = "invalid" if isinstance(error, SpecError) else "no_answer"
        out["status"][rows], out["reason"][rows] = kind, str(error)
        return
    if not len(rows):
        return
    out["status"][rows] = "ok"
    extra = _extra_bytes(rows, q, part, config)
    _add_epilogue(out, rows, q, extra)
    _unfit(out, rows)
    _rest(out, rows, q, part, extra, bundle)


def _extra_bytes(
    rows: npt.NDArray[np.int64], q: Question, shapes: Shapes, config: dict[str, F64]
) -> F64:
    """Bytes beyond a plain GEMM's: C read (beta), another output format, a fused epilogue."""
    p = shapes.problem(q.dtype)
    cells = shapes.batch * shapes.m * shapes.n
    out_size = find_dtype(q.out_dtype).bytes_of(1.0) if q.out_dtype else p.out_size
    read = np.where(config["beta"][rows] != 0.0, out_size, 0.0)
    return cells * (out_size - p.out_size + read) + config["epilogue_bytes"][rows]


def _add_epilogue(out: Table, rows: npt.NDArray[np.int64], q: Question, extra: F64) -> None:
    """Lengthen the time of rows that move more than was measured, by physics."""
    more = extra > 0
    if not more.any():
        return
    at, add = rows[more], extra[more] / q.hardware.memory.bandwidth
    for name, share in (("time_s", 1.0), ("time_low_s", 0.0), ("time_high_s", 2.0)):
        out[name][at] += share * add  # hidden behind the multiplication, or twice exposed (assumed)
    known = np.isin(out["basis"][at].astype(str), ("measured", "learned"))
    out["basis"][at[known]] = "transferred"
    out["reason"][at] += "; bytes of the epilogue added by physics"


def _unfit(out: Table, rows: npt.NDArray[np.int64]) -> None:
    """Rows whose kernel does not fit on the device have no time."""
    bad = rows[np.isnan(out["time_s"][rows])]
    if len(bad):
        out["status"][bad] = "no_answer"
        out["basis"][bad] = ""
        out["reason"][bad] = "the configuration does not fit on an SM of the device"
        for name in OUTPUTS:
            out[name][bad] = np.nan


def _rest(
    out: Table,
    rows: npt.NDArray[np.int64],
    q: Question,
    shapes: Shapes,
    extra: F64,
    bundle: Bundle,
) -> None:
    """Power, energy, memory and limiter of rows that have a time."""
    ok = out["status"][rows] == "ok"
    if not ok.all():
        rows, shapes, extra = rows[ok], shapes.take(ok), extra[ok]
    p = shapes.problem(q.dtype)
    time, moved, flops = out["time_s"][rows], p.bytes + extra, p.flops
    out["memory_bytes"][rows] = moved
    stream = moved * (1.0 / q.hardware.memory.bandwidth)
    compute = flops * (1.0 / q.hardware.rate(p.dtype))
    latency = q.hardware.launch_latency
    code = np.where(compute >= stream, 0, 1)
    code[np.maximum(compute, stream) < latency] = 2
    unknown = out["limiter"][rows] == ""
    out["limiter"][rows[unknown]] = _LIMITERS[code[unknown]]
    power = bundle.power()
    drawn = power.predict(q.hardware, q.dtype, flops, moved, moved, time, q.level)
    if drawn["power_w"] is None:
        out["reason"][rows] += f"; power: {drawn['reason']}"
        return
    for name in ("power_w", "power_low_w", "power_high_w"):
        out[name][rows] = drawn[name]
    limits = (out["time_low_s"][rows], out["time_high_s"][rows])
    energy = power.energy(q.hardware, q.dtype, drawn, time, limits, q.level)
    for name in ("energy_j", "energy_low_j", "energy_high_j"):
        out[name][rows] = energy[name]


def _clblast(
    out: Table,
    rows: npt.NDArray[np.int64],
    q: Question,
    shapes: Shapes,
    config: dict[str, F64],
    bundle: Bundle,
) -> tuple[npt.NDArray[np.int64], Shapes]:
    """Fill times of CLBlast configurations by their own model; return the rows that got one."""
    from .config_whatif import predict_configurations

    model = bundle.configurations()
    if model is None:
        raise UnsupportedError(f"{bundle.path} holds no model of CLBlast configurations")
    table: Table = {n: v[rows] for n, v in config.items() if np.isfinite(v[rows]).all()}
    usual = {f.name.lower(): f.default for f in fields(ClblastConfig)}
    left_open = [name for name in usual if name not in table]
    table |= {name: np.full(len(rows), usual[name]) for name in left_open}
    table |= {"m": shapes.m, "n": shapes.n, "k": shapes.k, "batch": shapes.batch}
    table["dtype"] = np.full(len(rows), q.dtype, dtype=object)
    done = predict_configurations(model, table, q.hardware, q.level)
    for name in ("time_s", "time_low_s", "time_high_s", "bound_s", "basis", "status", "reason"):
        out[name][rows] = done[name]
    ok = np.asarray(done["status"]) == "ok"
    if left_open:
        told = ", ".join(f"{name}={usual[name]}" for name in left_open)
        out["reason"][rows[ok]] += f"; taken for what was not given: {told}"
    answered, left = rows[ok], shapes.take(ok)
    if recapped(q.hardware) is None:
        return answered, left
    p = left.problem(q.dtype)
    slower = throttling(
        bundle.power(), q.hardware, q.dtype, (p.flops, p.bytes, p.bytes), out["time_s"][answered]
    )  # fmt: skip
    for name, factor in zip(("time_s", "time_low_s", "time_high_s"), slower, strict=True):
        out[name][answered] = np.maximum(out[name][answered] * factor, out["bound_s"][answered])
    return answered, left
