"""Questions of the model planner beside `LlmQuestion`: techniques in turn, limits, plans.

The fields, their bounds and how to ask the same elsewhere, as in `questions`. Knows no answers.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from .questions import SHORT, LlmQuestion, Name, Question, options_of, shown

__all__ = ["MOST_OPTIONS", "LimitsQuestion", "PlanQuestion", "WaterfallQuestion"]

MOST_OPTIONS = 64  # that one request searches, at 64 batches each
# one of several on the command line, which commas or bars part
_Word = Annotated[str, StringConstraints(strip_whitespace=True, max_length=SHORT,
                                         pattern=r"^[^,|]*$")]  # fmt: skip
_Set = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200, pattern=r"^[^|]*$")]
_Size = Annotated[int, Field(ge=1, le=1024)]
_Limit = Annotated[float | None, Field(gt=0, le=1e9)]


def _llm(q: LlmQuestion, **changes: Any) -> LlmQuestion:
    """Return the plain question behind a subclass, with fields changed and not checked again."""
    fields = {name: getattr(q, name) for name in LlmQuestion.model_fields}
    return LlmQuestion.model_construct(**fields | changes)


def _scenario_text(q: LlmQuestion) -> tuple[list[str], str]:
    """Take imports, and the scenario, from a question's lines of Python."""
    *imports, _, call, _ = _llm(q).python().splitlines()
    return imports, call.removeprefix("a = rc.evaluate(").removesuffix(")")


class WaterfallQuestion(LlmQuestion):
    """The same case with no technique, with the first, with the first two, and so on."""

    quantity: Literal["tpot", "ttft", "throughput", "memory", "energy"] = Field(
        "tpot", description="What the bars show.", **shown("Bars", "select", "Techniques")
    )

    def names(self) -> list[str]:
        """Techniques one by one, with their parameters."""
        return [one.strip() for text in self.technique for one in text.split(",") if one.strip()]

    def stacks(self) -> list[list[str]]:
        """Techniques of each step: none, the first one, the first two ..."""
        names = self.names()
        return [names[:i] for i in range(len(names) + 1)]

    def step(self, stack: Sequence[str]) -> LlmQuestion:
        """Ask about one step."""
        return _llm(self, technique=list(stack))

    def command(self) -> str:
        """`llm`, a line a step."""
        return "\n".join(self.step(stack).command() for stack in self.stacks())

    def python(self) -> str:
        """`rc.evaluate`, once a step."""
        imports, scenario = _scenario_text(self)
        steps = ", ".join(repr(",".join(stack)) for stack in self.stacks())
        return "\n".join([
            "from dataclasses import replace", "", *imports, "", f"s = {scenario}",
            f"for techniques in [{steps}]:",
            "    a = rc.evaluate(replace(s, techniques=techniques))",
            "    print(techniques or 'none', a.tpot, a.ttft, a.max_batch)",
        ])  # fmt: skip


class LimitsQuestion(LlmQuestion):
    """How far a case goes: the largest batch, the longest context, the largest batch in time.

    Requests in flight count for the longest context only, and only as a number (else 1).
    """

    tpot: _Limit = Field(None, description="Most seconds per output token.",
                         **shown("Most TPOT [s]", "number", "Limits"))  # fmt: skip
    ttft: _Limit = Field(None, description="Most seconds to the first token.",
                         **shown("Most TTFT [s]", "number", "Limits"))  # fmt: skip

    @property
    def limits(self) -> dict[str, float]:
        """Limits that were given [s]."""
        return {n: v for n in ("tpot", "ttft") if (v := getattr(self, n)) is not None}

    @property
    def in_flight(self) -> str:
        """Requests in flight with which the longest context is sought."""
        return "1" if self.batch == "max" or self.request_rate is not None else self.batch

    def parts(self) -> dict[str, dict[str, Any]]:
        """Fields of each question that `llm` is asked, by name, where they differ from these."""
        plain: dict[str, Any] = {"request_rate": None, "tpot": None, "ttft": None}
        found = {"largest_batch": plain | {"batch": "max"}}
        if self.limits:
            found["largest_batch_within"] = plain | {"batch": "max", **self.limits}
        return found | {"longest_context": plain | {"isl": "max", "batch": self.in_flight}}

    def command(self) -> str:
        """`llm`, a line a limit."""
        lines = []
        for part in self.parts().values():
            given = {k: v for k, v in part.items() if k not in ("tpot", "ttft")}
            limits = options_of({n: part[n] for n in ("tpot", "ttft")})
            line = _llm(self, **given).command()
            lines.append(f"{line} {shlex.join(limits)}" if limits else line)
        return "\n".join(lines)

    def python(self) -> str:
        """`largest_batch`, `largest_batch_within` and `longest_context`."""
        imports, scenario = _scenario_text(_llm(self, batch=self.in_flight, request_rate=None))
        names = ["largest_batch_within", "longest_context"]
        within = "".join(f", {name}={limit}" for name, limit in self.limits.items())
        lines = [f"print(largest_batch_within(s.made(), s{within}))"] if within else []
        return "\n".join([
            *imports, f"from ridgecast.scenario import {', '.join(names)}", "", f"s = {scenario}",
            "print(largest_batch_within(s.made(), s))", *lines,
            "print(longest_context(s.made(), s))",
        ])  # fmt: skip


class PlanQuestion(Question):
    """Which devices, how many, in which layout and format serve a model within limits."""

    page: ClassVar[str] = "plan"

    model: Name = Field("llama-3.1-70b", max_length=200, description="Network.",
                        **shown("Model", "select", "Model", options="models"))  # fmt: skip
    dtype: list[_Word] = Field(
        default=[""], min_length=1, max_length=6,
        description="Formats of weights and products to try; empty as published.",
        **shown("Weights", "many", "Model", options="formats"),
    )  # fmt: skip
    kv_dtype: list[_Word] = Field(
        default=[""], min_length=1, max_length=6,
        description="Formats of the cache to try; empty 16 bits.",
        **shown("KV cache", "many", "Model", options="formats"),
    )  # fmt: skip
    technique: list[_Set] = Field(
        default=[""], min_length=1, max_length=8,
        description="Sets of techniques to try, as kivi,marlin; empty none.",
        **shown("Techniques", "lines", "Model", options="techniques"),
    )  # fmt: skip
    on: list[_Word] = Field(default=["h100_sxm", "h200_sxm"], min_length=1, max_length=4,
                            description="Devices to try.",
                            **shown("Devices", "many", "Machine", options="devices"))  # fmt: skip
    devices: int = Field(64, ge=1, le=4096, description="Most devices of the service.",
                         **shown("Most devices", "number", "Machine"))  # fmt: skip
    engine: list[_Word] = Field(default=["vllm"], min_length=1, max_length=4,
                                description="Serving engines to try.",
                                **shown("Engines", "many", "Machine",
                                         options="engines"))  # fmt: skip
    tp: list[_Size] = Field(default=[1, 2, 4, 8], min_length=1, max_length=8,
                            description="Tensor-parallel sizes to try.",
                            **shown("tp", "many", "Layout"))  # fmt: skip
    pp: list[_Size] = Field(default=[1, 2], min_length=1, max_length=8,
                            description="Pipeline stages to try.",
                            **shown("pp", "many", "Layout"))  # fmt: skip
    price: list[_Word] = Field(default=[], max_length=4,
                               description="USD per device and hour: h100_sxm=2.5.",
                               **shown("Prices", "lines", "Machine"))  # fmt: skip
    isl: int = Field(2048, ge=1, le=10_000_000, description="Prompt tokens of a request.",
                     **shown("Prompt", "number", "Traffic"))  # fmt: skip
    osl: int = Field(512, ge=1, le=1_000_000, description="Output tokens of a request.",
                     **shown("Output", "number", "Traffic"))  # fmt: skip
    request_rate: _Limit = Field(None, description="Requests/s to carry; without, one replica.",
                                 **shown("Requests/s", "number", "Traffic"))  # fmt: skip
    ttft: _Limit = Field(None, description="Most seconds to the first token.",
                         **shown("Most TTFT [s]", "number", "Limits"))  # fmt: skip
    tpot: _Limit = Field(None, description="Most seconds per output token.",
                         **shown("Most TPOT [s]", "number", "Limits"))  # fmt: skip
    e2e: _Limit = Field(None, description="Most seconds of a request.",
                        **shown("Most end to end [s]", "number", "Limits"))  # fmt: skip
    power: _Limit = Field(None, description="Most W of all devices.",
                          **shown("Most power [W]", "number", "Limits"))  # fmt: skip
    cost: _Limit = Field(None, description="Most USD/h of all devices.",
                         **shown("Most cost [USD/h]", "number", "Limits"))  # fmt: skip
    strict: bool = Field(False, description="Hold upper ends of intervals to the limits.",
                         **shown("Strict", "switch", "Limits"))  # fmt: skip
    objective: Literal["cost", "devices", "power", "throughput"] = Field(
        "cost", description="What the best is by.", **shown("Best by", "select", "Limits")
    )
    across: Literal["tpot", "interactivity"] = Field(
        "tpot", description="What the figure shows across: seconds per token, or tokens/s of a "
        "request.", **shown("Across", "select", "Figure"),
    )  # fmt: skip

    @model_validator(mode="after")
    def _bounded(self) -> PlanQuestion:
        sizes = {name: len(getattr(self, name)) for name in _TRIED}
        options = math.prod(sizes.values())
        if options > MOST_OPTIONS:
            longest = max(sizes, key=lambda name: sizes[name])
            told = " x ".join(f"{n} {size}" for n, size in sizes.items() if size > 1)
            raise ValueError(
                f"{longest}: {told} are {options} options, one request searches at most "
                f"{MOST_OPTIONS}; shorten {longest}, or run `ridgecast plan serve`"
            )
        return self

    def command(self) -> str:
        """`plan serve`."""
        words = ["ridgecast", "plan", "serve", self.model]
        many = {"dtype": ",".join(self.dtype), "kv_dtype": ",".join(self.kv_dtype),
                "technique": "|".join(self.technique), "stack": ",".join(self.engine),
                "tp": _numbers(self.tp), "pp": _numbers(self.pp)}  # fmt: skip
        words += options_of({
            "on": ",".join(self.on), "isl": self.isl, "osl": self.osl,
            "request_rate": self.request_rate, "ttft": self.ttft, "tpot": self.tpot,
            "e2e": self.e2e, "power": self.power, "cost": self.cost,
            "devices": self.devices if self.devices != 64 else None,
            **{k: v for k, v in many.items() if v != _PLAIN[k]},
            "strict": self.strict, "price": self.price,
            "objective": self.objective if self.objective != "cost" else None})  # fmt: skip
        return shlex.join(words)

    def python(self) -> str:
        """`plan_serving`."""
        space = f"{self.on!r}"
        names = {"engines": self.engine, "dtypes": self.dtype, "kv_dtypes": self.kv_dtype,
                 "techniques": self.technique, "tp": self.tp, "pp": self.pp}  # fmt: skip
        defaults = {"engines": ["vllm"], "tp": [1, 2, 4, 8], "pp": [1, 2]}
        space += "".join(f", {k}={v!r}" for k, v in names.items() if v != defaults.get(k, [""]))
        space += f", prices=prices_of({self.price!r})" if self.price else ""
        rate = f", request_rate={self.request_rate}" if self.request_rate else ""
        limits = {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e, "power": self.power,
                  "cost_per_h": self.cost, "devices": self.devices if self.devices != 64 else None,
                  "strict": self.strict or None}  # fmt: skip
        kept = ", ".join(f"{k}={v!r}" for k, v in limits.items() if v is not None)
        words = ["from ridgecast.search.plan_words import prices_of"] if self.price else []
        return "\n".join([
            "from ridgecast.scenario import Traffic", *words,
            "from ridgecast.search.serving_plan import Limits, Space, plan_serving", "",
            f"space = Space({space})", f"traffic = Traffic({self.isl}, {self.osl}{rate})",
            f"plan = plan_serving({self.model!r}, space, traffic, Limits({kept}),",
            f"                    objective={self.objective!r})",
            "print(plan.to_dict()['best'])",
        ])  # fmt: skip


def _numbers(sizes: Sequence[int]) -> str:
    return ",".join(str(size) for size in sizes)


_TRIED = ("on", "engine", "dtype", "kv_dtype", "technique", "tp", "pp")
# what the command line tries where nothing is said
_PLAIN = {"dtype": "", "kv_dtype": "", "technique": "", "stack": "vllm", "tp": "1,2,4,8",
          "pp": "1,2"}  # fmt: skip
