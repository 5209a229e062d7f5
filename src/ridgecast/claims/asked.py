"""What a recipe asks of the models: scenarios, pictures, training steps, single operations.

Listens (`predict.observe`) while a recipe runs and tells what was asked in words, with the question
itself beside it, so that a reader can ask the same. Owns `Asked` and the words; changes nothing of
what a recipe computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np

from ..errors import RidgecastError
from ..hardware import Hardware, resolve
from ..models.network import Layout, Network
from ..ops import Gemm
from ..predict.observe import observing
from ..scenario import Generation, Host, Points, Scenario
from ..scenario.passes import Job
from ..techniques import Treatment, treatment_of
from ..units import format_number, format_quantity
from .evaluate import Checked, check, recipe_of
from .recipes import RECIPES

__all__ = ["Asked", "Recorded", "record"]

MOST = 20  # questions of scenarios, and as many of operations
_WHAT = {
    "serve": "latency and throughput", "memory": "memory", "largest": "largest batch",
    "generate": "a picture or clip", "train": "a training step", "pass": "a forward pass",
    "predict": "a prediction", "work": "operations and bytes", "time": "time by physics",
}  # fmt: skip
# what is asked of one scenario stands in one row
_FAMILIES = {"memory": "serve", "largest": "serve"}
_DIMENSIONS = {"bandwidth": "bytes_per_s", "capacity": "bytes", "flops_per_s": "flops_per_s"}
_LISTED = 4  # sizes that are spelled out


@dataclass(frozen=True, slots=True)
class Asked:
    """One question in words, merged over what was swept.

    `what` says what was wanted, `of` the model or operation, `on` the machine, `how` everything
    else that is not as usual, `sizes` and `batch` what was swept. `source` is the question: a
    `Scenario` with the largest batch that was asked for, a `Gemm` ..., None where there is none
    that can be asked alone; `config` a kernel's configuration.
    """

    what: str
    of: str
    on: str = ""
    how: str = ""
    sizes: str = ""
    batch: str = ""
    source: Any = None
    config: Any = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """A work with what its recipe asked: scenarios first, single operations last.

    `left_out` counts the questions beyond MOST of a kind. `function` and `words` are the recipe's
    name and docstring, "" for a work without one.
    """

    checked: Checked
    asked: tuple[Asked, ...]
    left_out: int = 0
    function: str = ""
    words: str = ""


def record(name: str) -> Recorded:
    """Recompute one work and note what its recipe asks of the models.

    Raises SpecError for an id that the ledger does not have, with the nearest three.
    """
    heard = _Heard()
    with observing(heard):
        checked = check(name)
    if name not in RECIPES:
        return Recorded(checked, ())
    recipe = recipe_of(name)
    asked, left_out = heard.questions()
    where = f"{recipe.__module__}.{recipe.__name__}"
    return Recorded(checked, asked, left_out, where, inspect.getdoc(recipe) or "")


# ------------------------------------------------------------------------------------ listening


@dataclass(slots=True)
class _Question:
    """One question while it is heard: what was wanted of it, and the sizes that were swept."""

    of: str
    on: str
    how: str
    wanted: dict[str, None] = field(default_factory=dict[str, None])
    sizes: dict[str, None] = field(default_factory=dict[str, None])
    numbers: dict[str, set[float]] = field(default_factory=dict[str, set[float]])
    batches: set[float] = field(default_factory=set[float])
    most: bool = False
    source: Any = None
    config: Any = None


Key = tuple[str, str, str, str]


class _Heard:
    """A listener: questions by their words, in the order in which they were first asked."""

    def __init__(self) -> None:
        self._found: dict[Key, _Question] = {}
        # works as they were made, kept so that ids stay theirs
        self._made: dict[int, tuple[Any, str, Mapping[str, Any]]] = {}
        self._timed: set[int] = set()

    def __call__(self, kind: str, *asked: Any) -> None:
        getattr(self, f"_{kind}")(*asked)

    def _note(self, kind: str, of: str, on: str, how: str) -> _Question:
        family = _FAMILIES.get(kind, kind)
        question = self._found.setdefault((family, of, on, how), _Question(of, on, how))
        question.wanted[kind] = None
        return question

    def _serve(self, s: Scenario, at: Points) -> None:
        question = self._scenario("serve", s)
        for isl, osl in np.unique(np.stack([at.isl, at.osl], axis=1), axis=0).tolist():
            batches = at.batch[(at.isl == isl) & (at.osl == osl)]
            question.sizes[_lengths(isl, osl)] = None
            question.batches |= set(batches.tolist())
            question.source = _with(s, isl, osl, batches.max())

    def _memory(self, s: Scenario, batch: int | str) -> None:
        question = self._scenario("largest" if batch == "max" else "memory", s)
        question.sizes[_lengths(s.traffic.isl, s.traffic.osl)] = None
        if batch == "max":
            question.most = True
        else:
            question.batches.add(float(batch))
        if "serve" not in question.wanted:
            question.source = _with(s, s.traffic.isl, s.traffic.osl, batch)

    def _scenario(self, kind: str, s: Scenario) -> _Question:
        return self._note(kind, _name(s.model), _machine(s.hardware, s.devices), _how(s))

    def _generate(self, case: Generation) -> None:
        how = [_layout(case.layout), _formats(case.dtype), _engine(case.engine),
               _techniques(case.treatment), _host(case.host),
               f"{', '.join(case.on_host)} on the host" if case.on_host else ""]  # fmt: skip
        machine = _machine(case.hardware, case.layout.devices)
        question = self._note("generate", _name(case.pipeline), machine, _joined(how))
        if case.canvas is not None:
            question.sizes[_fields(case.canvas)] = None
        question.source = case

    def _pass(self, job: Job) -> None:
        machine = job.machine
        how = [_layout(machine.layout), _engine(machine.engine), _techniques(job.treatment)]
        on = _machine(machine.hardware, machine.layout.devices)
        question = self._note("pass", job.network.name, on, _joined(how))
        for group in job.groups:
            if np.max(group.batch) > 0:
                question.sizes[_fields(group)] = None

    def _train(self, network: Network, on: Hardware | None, plan: Any, t: Treatment) -> None:
        devices = plan.layout.devices * plan.data
        usual = type(plan)()
        same = replace(plan, batch=usual.batch, length=usual.length, layout=usual.layout, data=1)
        spread = f"data {plan.data}" if plan.data > 1 else ""
        how = [_layout(plan.layout), spread, _changed(same, usual), _techniques(t)]
        machine = _machine(on, devices) if on else f"memory of {_count(devices, 'device')}"
        question = self._note("train", network.name, machine, _joined(how))
        question.sizes[f"{plan.batch:g} × {plan.length:,} tokens"] = None

    def _predict(self, op: Any, on: Hardware, config: Any) -> None:
        kernel = "" if config is None else f"kernel {config.kernel}"
        given = _given(op) | ({} if config is None else _given(config))
        question = self._operation("predict", op.name, _device(on), given, kernel)
        question.source, question.config = op, config

    def _work(self, op: str, given: Mapping[str, Any], work: Any) -> None:
        self._made[id(work)] = (work, op, given)

    def _time(self, work: Any, on: Hardware) -> None:
        if id(work) not in self._made:
            self._note("time", "work put together of several operations", _device(on), "")
            return
        _, op, given = self._made[id(work)]
        self._timed.add(id(work))
        question = self._operation("time", op, _device(on), given)
        if op == "gemm":
            question.source = _gemm(given)

    def _operation(
        self, kind: str, op: str, on: str, given: Mapping[str, Any], how: str = ""
    ) -> _Question:
        words = {k: v for k, v in given.items() if isinstance(v, str | bool)}
        told = [how, ", ".join(f"{k} {_text(v)}" for k, v in words.items())]
        question = self._note(kind, op, on, _joined(told))
        for name in given:
            if name not in words:
                values = np.ravel(np.asarray(given[name], np.float64))
                question.numbers.setdefault(name, set()).update(values.tolist())
        return question

    def questions(self) -> tuple[tuple[Asked, ...], int]:
        """Questions in words, at most MOST of scenarios and of operations, and how many more."""
        for name, (_, op, given) in self._made.items():
            if name not in self._timed:
                self._operation("work", op, "", given)
        found = self._found
        if {key[0] for key in found} & {"serve", "generate", "train"}:  # made of passes
            found = {key: q for key, q in found.items() if key[0] != "pass"}
        rows: list[list[Asked]] = [[], []]
        for (family, *_), question in found.items():
            rows[family in ("predict", "time", "work")].append(_asked(question))
        asked = [one for part in rows for one in part[:MOST]]
        return tuple(asked), sum(len(part) for part in rows) - len(asked)


def _asked(q: _Question) -> Asked:
    sizes = list(q.sizes)
    if len(sizes) > _LISTED:
        sizes = [*sizes[: _LISTED - 1], f"{len(sizes) - _LISTED + 1} others"]
    words = [f"{name} {_span(values)}" for name, values in q.numbers.items()]
    batch = [_span(q.batches)] if q.batches else []
    batch += ["the most that fits"] if q.most else []
    what = ", ".join(_WHAT[kind] for kind in q.wanted)
    swept = _joined([*sizes, ", ".join(words)])
    return Asked(what, q.of, q.on, q.how, swept, ", ".join(batch), q.source, q.config)


def _with(s: Scenario, isl: float, osl: float, batch: Any) -> Scenario:
    """Return a scenario under one point's traffic."""
    count = "max" if batch == "max" else max(int(batch), 1)
    lengths = {"isl": max(int(isl), 1), "osl": max(int(osl), 1)}
    return replace(s, traffic=replace(s.traffic, batch=count, **lengths))


# ---------------------------------------------------------------------------------------- words


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(part for part in parts if part)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else str(value.name)


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" + ("s" if number != 1 else "")


def _device(on: Hardware | str) -> str:
    """Name of a device, and whether a recipe changed its numbers."""
    if isinstance(on, str):
        return on
    return on.name if _is_known(on) else f"{on.name}, changed"


def _is_known(on: Hardware) -> bool:
    try:
        return resolve(on.name) == on
    except RidgecastError:
        return False


def _machine(on: Hardware | str, devices: int) -> str:
    return f"{devices} × {_device(on)}" if devices != 1 else _device(on)


def _lengths(isl: float, osl: float) -> str:
    return f"{isl:,.0f} + {osl:,.0f} tokens"


def _text(value: Any) -> str:
    """Text of a word or a flag."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _span(values: Iterable[float]) -> str:
    """Text of a number, or of the ends of many."""
    found = sorted(set(values))
    if not found:
        return ""
    low, high = format_number(found[0]), format_number(found[-1])
    if len(found) == 1:
        return low
    return f"{low} to {high}" + (f" ({len(found)} values)" if len(found) > 2 else "")


def _given(value: Any) -> dict[str, Any]:
    """Fields of an operation or a configuration that are not as usual, and its format."""
    found: dict[str, Any] = {}
    for f in fields(value):
        own = getattr(value, f.name)
        if own is not None and (f.name == "dtype" or own != f.default):
            found[f.name] = own if isinstance(own, str | bool | int | float) else str(own)
    return found


def _fields(group: Any) -> str:
    """Sizes of a group of tokens or of a canvas, without those that are one."""
    told: list[str] = []
    for f in fields(group):
        values = np.ravel(np.asarray(getattr(group, f.name), np.float64))
        if (values > 1).any() or f.name == "batch":
            told.append(f"{f.name} {_span(values.tolist())}")
    return ", ".join(told)


def _layout(layout: Layout | None) -> str:
    if layout is None:
        return ""
    given = {n: getattr(layout, n) for n in ("tp", "pp", "dp", "ep", "cp")}
    return " ".join(f"{name} {n}" for name, n in given.items() if n != 1)


def _formats(dtype: str | Mapping[str, str]) -> str:
    if isinstance(dtype, str):
        return dtype
    return ", ".join(f"{key} {value}" for key, value in dtype.items())


def _engine(engine: Any) -> str:
    return "" if _name(engine) == "vllm" else f"engine {_name(engine)}"


def _host(host: Host) -> str:
    return "" if host == Host() else f"host: {_changed(host, Host())}"


def _how(s: Scenario) -> str:
    t = s.traffic
    formats = {"experts": s.experts, "KV cache": s.kv_dtype}
    told = [_layout(s.layout), _engine(s.engine), s.dtype,
            *(f"{name} {value}" for name, value in formats.items() if value),
            _techniques(s.techniques), f"common prefix {t.prefix:g}" if t.prefix else "",
            "steady state" if t.rounds == float("inf") else "", _host(s.host)]  # fmt: skip
    return _joined(told)


def _techniques(given: str | Treatment) -> str:
    """Techniques as on the command line, and what a treatment changes beyond its own."""
    if isinstance(given, str):
        return given
    names = ",".join(given.techniques)
    try:
        usual = treatment_of(names)
    except RidgecastError:  # names that exclude each other, or of a technique made on the spot
        usual = Treatment()
    more = _changed(given, replace(usual, techniques=given.techniques))
    return _joined([names, more])


def _changed(value: Any, usual: Any) -> str:
    """Fields that differ from the usual ones: "kv.place host, launches 0.5"."""
    return ", ".join(f"{path} {text}" for path, text in _differences(value, usual))


def _differences(value: Any, usual: Any, path: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for f in fields(value):
        own, other = getattr(value, f.name), getattr(usual, f.name)
        if own == other:
            continue
        if is_dataclass(own) and not isinstance(own, type):
            base = other if type(other) is type(own) else None
            found += _differences(own, base, f"{path}{f.name}.") if base is not None else [
                (f"{path}{f.name}", " ".join(f"{k} {_value(k, v)}" for k, v in _given(own).items()))
            ]  # fmt: skip
        else:
            found.append((f"{path}{f.name}", _value(f.name, own)))
    return found


def _value(name: str, value: Any) -> str:
    if isinstance(value, frozenset | tuple):
        return " ".join(sorted(map(str, value)))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return _text(value)
    kind = next((d for part, d in _DIMENSIONS.items() if part in name), "")
    return format_quantity(float(value), kind) if kind else format_number(value)


def _gemm(given: Mapping[str, Any]) -> Gemm | None:
    """Build the product that a recipe counted, the last of a sweep; None for a part of one."""
    try:
        m, n, k = (int(np.ravel(np.asarray(given[name], np.float64))[-1]) for name in "mnk")
        return Gemm(m, n, k, dtype=given.get("dtype", "bf16"))
    except (KeyError, RidgecastError):
        return None
