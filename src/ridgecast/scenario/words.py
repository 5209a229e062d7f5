"""A scenario from words, and the document of its answer: the same for every face.

Owns what `llm` means by its words; messages name its options. Solves nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InfeasibleError, SpecError
from ..hardware import resolve
from ..models.network import Layout
from .case import Answer, Scenario, Traffic
from .inverse import largest_batch_within, longest_context

__all__ = ["document_of", "scenario_of"]


def scenario_of(
    model: str, on: str, sizes: Mapping[str, int], asked: Mapping[str, Any]
) -> Scenario:
    """Build a scenario from words.

    `on` is DEVICE or DEVICE:N, `sizes` the layout as far as it is given (tp, pp, dp, ep, cp),
    `asked` the other options of `llm` by name; its what_if maps fields of the device to changes, as
    for `Hardware.what_if`. isl "max" becomes the longest prompt with which the batch fits, batch
    "max" with `tpot` or `ttft` [s] the largest that keeps them.
    Raises SpecError for what cannot be read, InfeasibleError where no prompt or batch will do.
    """
    device, _, count = (
        on.rpartition(":") if ":" in on and not on.endswith(".toml") else (on, "", "")
    )
    if count and (not count.isdecimal() or int(count) < 1):
        raise SpecError(f"--on: got {on!r}, need DEVICE or DEVICE:N with N of at least 1")
    layout = Layout(**sizes) if sizes else None
    devices = int(count) if count else (layout.devices if layout else 1)
    isl, batch = _whole("isl", asked["isl"]), _whole("batch", asked["batch"])
    rate = asked.get("request_rate")
    traffic = Traffic(1 if isl == "max" else int(isl), asked["osl"], batch, rate,
                      asked.get("prefix", 0.0))  # fmt: skip
    changes = asked.get("what_if")
    s = Scenario(
        model, resolve(device).what_if(changes) if changes else device, devices, layout,
        traffic, asked["engine"], asked["dtype"],
        kv_dtype=asked["kv_dtype"], techniques=asked["technique"],
        price_per_h=asked.get("price_per_h"), trained=asked.get("trained"),
    )  # fmt: skip
    limits = {n: v for n in ("tpot", "ttft") if (v := asked.get(n)) is not None}
    if isl == "max":
        if batch == "max" or rate is not None:
            raise SpecError("--isl: max needs a number of requests in flight, such as --batch 1; "
                            "those of --batch max and --request-rate depend on it")  # fmt: skip
        s = _longest(s)
    if limits:
        s = _within(s, limits)
    return s


def _whole(name: str, text: Any) -> int | str:
    if text == "max":
        return "max"
    if not str(text).isdecimal():
        raise SpecError(f"--{name}: got {text!r}, need a whole number of at least 1, or max")
    return int(text)


def _longest(s: Scenario) -> Scenario:
    isl = longest_context(s.made(), s)
    if not isl:
        raise InfeasibleError(
            f"--isl: no prompt fits beside {s.traffic.osl} output tokens with {s.traffic.batch} "
            "requests in flight; ask with --isl 1 to see what would fit"
        )
    return replace(s, traffic=replace(s.traffic, isl=isl))


def _within(s: Scenario, limits: Mapping[str, float]) -> Scenario:
    for name, limit in limits.items():
        if s.traffic.batch != "max" or s.traffic.request_rate is not None:
            raise SpecError(f"--{name}: limits --batch max, and nothing else; got "
                            f"--batch {s.traffic.batch}")  # fmt: skip
        if not 0 < limit < float("inf"):
            raise SpecError(f"--{name}: got {limit}, need seconds above 0")
    batch = largest_batch_within(s.made(), s, **limits)
    return replace(s, traffic=replace(s.traffic, batch=batch)) if batch else s


def document_of(model: str, on: str, s: Scenario, answer: Answer) -> dict[str, Any]:
    """Document of an answer, as `llm --json` prints it; `isl` and `osl` are its tokens."""
    named = s.hardware if isinstance(s.hardware, str) else s.hardware.name
    changes = named.partition("[")[2].removesuffix("]") or None  # as a what-if writes them
    asked = {"model": model, "on": on, "what_if": changes, "isl": s.traffic.isl,
             "osl": s.traffic.osl}  # fmt: skip
    return asked | answer.to_dict()
