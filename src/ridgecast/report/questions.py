"""Questions that views answer: fields with their bounds, words and controls, once for every face.

The web page makes its forms and its API of them, `ridgecast report` its options; each knows how to
ask the same on the command line, in Python and as an address. Validation stops at shape and bounds:
names are looked up by whoever answers.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import SpecError, nearest
from ..ops.gemm import MAX_DIM

__all__ = ["SHORT", "AdviceQuestion", "GemmQuestion", "HeatQuestion", "LlmQuestion", "Name",
           "Question", "TuneQuestion", "options_of", "question_of", "shown",
           "wrong_fields"]  # fmt: skip

Name = str
SHORT = 64  # letters of a name
_TEXT = 400


def shown(title: str, control: str, section: str, **more: Any) -> dict[str, Any]:
    """Arguments of a Field that a form shows: title, control, the section that it stands in."""
    return {"title": title, "json_schema_extra": {"control": control, "section": section, **more}}


class Question(BaseModel):
    """A question by value; two equal ones have one address."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    page: ClassVar[str] = ""

    def asked(self) -> dict[str, Any]:
        """Fields that differ from their defaults; needed ones always."""
        found: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if info.is_required() or value != info.get_default(call_default_factory=True):
                found[name] = value
        return found

    def address(self) -> str:
        """Path and query that restore the question."""
        query = urlencode({k: _word(v) for k, v in self.asked().items()}, doseq=True)
        return f"/{self.page}" + (f"?{query}" if query else "")

    def command(self) -> str:
        """Command line that answers it."""
        raise NotImplementedError

    def python(self) -> str:
        """Lines of Python that answer it."""
        raise NotImplementedError


def question_of(kind: type[Question], pairs: Iterable[tuple[str, str]]) -> Any:
    """Build a question from written fields; a field that is a list may be given several times.

    Raises SpecError that names every field that is wrong, what was got and what is allowed.
    """
    given: dict[str, Any] = {}
    for name, text in pairs:
        info = kind.model_fields.get(name)
        if info is not None and isinstance(info.get_default(call_default_factory=True), list):
            given.setdefault(name, []).append(text)
        else:
            given[name] = text
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        found = wrong_fields(error.errors(), list(kind.model_fields))
        raise SpecError("; ".join(f"{message}; {cure}" for _, message, cure in found)) from None


def wrong_fields(
    errors: Iterable[Mapping[str, Any]], fields: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Field, message and cure of each thing that validation found wrong."""
    found = []
    for error in errors:
        place = [str(p) for p in error["loc"] if p not in ("query", "body", "path")]
        field = (place[0] if place else "question") or "''"
        got = repr(error.get("input"))
        shown = got if len(got) <= 80 else got[:77] + "..."
        need = str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            near = ", ".join(nearest(field, fields))
            found.append((field, f"{field}: no such field", f"nearest: {near}"))
        elif error["type"] == "missing":
            found.append((field, f"{field}: not given", f"give {field}"))
        elif not place:
            found.append((next((f for f in fields if need.startswith(f"{f}:")), field), need, need))
        else:
            found.append((field, f"{field}: got {shown}", need))
    return found


def _word(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return [_word(v) for v in value] if isinstance(value, list | tuple) else value


def _halves(texts: Iterable[str]) -> dict[str, str]:
    """Names and values of NAME=VALUE texts."""
    split = (text.partition("=") for text in texts)
    return {name: value for name, _, value in split}


def options_of(values: Mapping[str, Any]) -> list[str]:
    """Words of options: --name value, repeated for lists, left out for None, "" and False."""
    words: list[str] = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is True:
                words.append(flag)
            elif one is not None and one is not False and one != "":
                words += [flag, str(one)]
    return words


class GemmQuestion(Question):
    """One matrix multiplication on a device, beside others, with what-ifs."""

    page: ClassVar[str] = "gemm"

    m: int = Field(4096, ge=1, le=MAX_DIM, description="Rows of A and D.",
                   **shown("m", "number", "Work"))  # fmt: skip
    n: int = Field(4096, ge=1, le=MAX_DIM, description="Columns of B and D.",
                   **shown("n", "number", "Work"))  # fmt: skip
    k: int = Field(4096, ge=1, le=MAX_DIM, description="Length of the contraction.",
                   **shown("k", "number", "Work"))  # fmt: skip
    dtype: Name = Field("bf16", max_length=SHORT, description="Number format of the operands.",
                        **shown("Format", "select", "Work", options="dtypes"))  # fmt: skip
    batch: int = Field(1, ge=1, le=1 << 20, description="Multiplications in one call.",
                       **shown("Batch", "number", "Work"))  # fmt: skip
    layout: Literal["nn", "nt", "tn", "tt"] = Field(
        "tn", description="Storage of A and B.", **shown("Layout", "select", "Work")
    )
    on: Name = Field("h200_sxm", max_length=SHORT, description="Device.",
                     **shown("Device", "select", "Machine", options="devices"))  # fmt: skip
    against: list[Name] = Field(default=[], max_length=6, description="Other devices beside it.",
                                **shown("Beside", "many", "Machine",
                                         options="devices"))  # fmt: skip
    cache: Literal["hot", "cold"] = Field(
        "hot", description="State of the L2 before the call.", **shown("L2", "select", "Machine")
    )
    kernel: Literal["library", "tiled", "cutlass_simt", "cutlass_tensor", "clblast"] = Field(
        "library", description="How it is run.", **shown("Kernel", "select", "Kernel")
    )
    tile: int | None = Field(None, ge=1, le=64, description="Tile edge of the tiled kernel.",
                             **shown("tile", "number", "Kernel", kernels="tiled"))  # fmt: skip
    tile_m: int | None = Field(None, ge=1, le=4096, description="Rows of D that a block computes.",
                               **shown("tile_m", "number", "Kernel",
                                        kernels="cutlass_simt cutlass_tensor"))  # fmt: skip
    tile_n: int | None = Field(None, ge=1, le=4096,
                               description="Columns of D that a block computes.",
                               **shown("tile_n", "number", "Kernel",
                                        kernels="cutlass_simt cutlass_tensor"))  # fmt: skip
    tile_k: int | None = Field(None, ge=1, le=4096, description="Step along k.",
                               **shown("tile_k", "number", "Kernel",
                                        kernels="cutlass_simt cutlass_tensor"))  # fmt: skip
    stages: int | None = Field(None, ge=1, le=64, description="Steps in flight.",
                               **shown("stages", "number", "Kernel",
                                        kernels="cutlass_simt cutlass_tensor"))  # fmt: skip
    split_k: int | None = Field(None, ge=1, le=4096, description="Parts of the contraction.",
                                **shown("split_k", "number", "Kernel",
                                         kernels="cutlass_simt cutlass_tensor"))  # fmt: skip
    config: list[str] = Field(default=[], max_length=24,
                              description="Other parameters of the kernel: KEY=VALUE.",
                              **shown("Other parameters", "lines", "Kernel",
                                       kernels="clblast"))  # fmt: skip
    what_if: list[str] = Field(default=[], max_length=12,
                               description="Changes of the device: memory.bandwidth=+20%.",
                               **shown("What if", "sliders", "What if"))  # fmt: skip
    level: float = Field(0.9, ge=0.5, le=0.99, description="Share of cases that intervals cover.",
                         **shown("Interval", "number", "Machine"))  # fmt: skip

    @model_validator(mode="after")
    def _known_together(self) -> Self:
        if self.cache != "hot" and self.what_if:
            raise ValueError(
                "cache: what-ifs are known for a hot L2 only; leave one of the two out"
            )
        return self

    @property
    def sizes(self) -> dict[str, int | None]:
        """Tile sizes as the command line's options name them."""
        return {name: getattr(self, name) for name in _TILES}

    def _kernel_words(self) -> list[str]:
        named = {} if self.kernel == "library" else {"kernel": self.kernel}
        return options_of({**named, **self.sizes, "config": self.config})

    def _work_words(self) -> list[str]:
        shared = {"dtype": self.dtype, "on": self.on}
        extra = {"batch": self.batch if self.batch != 1 else None,
                 "layout": self.layout if self.layout != "tn" else None}  # fmt: skip
        return ["gemm", f"{self.m}x{self.n}x{self.k}", *options_of(shared | extra)]

    def _report(self, name: str) -> str:
        fields = [f"{k}={_word(one)}" for k, v in self.asked().items()
                  for one in (v if isinstance(v, list) else [v])]  # fmt: skip
        return shlex.join(["ridgecast", "report", name, *fields])

    def _level(self) -> float | None:
        return None if self.level == 0.9 else self.level

    def command(self) -> str:
        """`predict`, or `explain` where the device is changed."""
        words = ["ridgecast", "explain" if self.what_if else "predict", *self._work_words(),
                 *self._kernel_words()]  # fmt: skip
        cold = None if self.cache == "hot" else self.cache
        words += options_of({"what_if": self.what_if, "cache": cold, "level": self._level()})
        return shlex.join(words)

    def python(self) -> str:
        """`rc.predict`, and `explain` with what-ifs; nothing for a cold L2, which tables know."""
        if self.cache != "hot":
            return ""
        extra = "".join(f", {k}={v!r}" for k, v in (("batch", self.batch), ("layout", self.layout))
                        if v != type(self).model_fields[k].default)  # fmt: skip
        work = f"rc.Gemm({self.m}, {self.n}, {self.k}, dtype={self.dtype!r}{extra})"
        options = ""
        if self.kernel != "library":
            options += f", config={self._config_text()}"
        if self.level != 0.9:
            options += f", level={self.level}"
        lines = ["import ridgecast as rc", "",
                 f"p = rc.predict({work}, on={self.on!r}{options})", "print(p)"]  # fmt: skip
        changes = _halves(self.what_if)
        lines.append(f"print(p.explain(what_if={changes!r}))" if changes else "print(p.explain())")
        return "\n".join(lines)

    def _config_text(self) -> str:
        kind = _CONFIGS[self.kernel]
        given = {k: v for k, v in self.sizes.items() if v is not None}
        given |= _halves(self.config)
        return f"rc.{kind}({', '.join(f'{k}={v}' for k, v in given.items())})"


_CONFIGS = {"tiled": "TiledConfig", "cutlass_simt": "SimtConfig",
            "cutlass_tensor": "TensorConfig", "clblast": "ClblastConfig"}  # fmt: skip
_TILES = ("tile", "tile_m", "tile_n", "tile_k", "stages", "split_k")


class AdviceQuestion(GemmQuestion):
    """What would make the same work better."""

    def command(self) -> str:
        """`explain`, whatever is changed."""
        words = ["ridgecast", "explain", *self._work_words(), *self._kernel_words()]
        return shlex.join(words + options_of({"what_if": self.what_if, "level": self._level()}))


class TuneQuestion(GemmQuestion):
    """Rank the configurations of a kernel for the same work."""

    objective: Literal["time", "energy", "edp"] = Field(
        "time", description="What the ranking is by.", **shown("Rank by", "select", "Ranking")
    )
    top: int = Field(12, ge=1, le=200, description="Configurations in the table.",
                     **shown("Rows", "number", "Ranking"))  # fmt: skip

    def command(self) -> str:
        """`tune`, or `report tune` for what that command cannot be told."""
        if self.what_if or self.level != 0.9:
            return self._report("tune")
        kernel = None if self.kernel == "library" else self.kernel
        words = ["ridgecast", "tune", *self._work_words()]
        return shlex.join(words + options_of({
            "kernel": kernel, "objective": self.objective, "top": self.top}))  # fmt: skip


class HeatQuestion(GemmQuestion):
    """A heat map of the same work over two knobs."""

    x: Name = Field("n", max_length=SHORT, description="Knob of the columns.",
                    **shown("Across", "select", "Map", options="knobs"))  # fmt: skip
    y: Name = Field("m", max_length=SHORT, description="Knob of the rows.",
                    **shown("Down", "select", "Map", options="knobs"))  # fmt: skip
    show: Literal["time", "power", "energy", "edp", "utilisation", "rate"] = Field(
        "utilisation", description="What the colour says.", **shown("Colour", "select", "Map")
    )

    def command(self) -> str:
        """`report heat`: a map has no command of its own."""
        return self._report("heat")


class LlmQuestion(Question):
    """A model in service on devices, under traffic, with techniques."""

    page: ClassVar[str] = "llm"

    model: Name = Field("llama-3.1-70b", max_length=200, description="Network.",
                        **shown("Model", "select", "Model", options="models"))  # fmt: skip
    dtype: str = Field("", max_length=SHORT, description="Format of weights and products; "
                       "empty as published.",
                       **shown("Weights", "select", "Model", options="formats"))  # fmt: skip
    kv_dtype: str = Field("", max_length=SHORT, description="Format of the cache; empty 16 bits.",
                          **shown("KV cache", "select", "Model", options="formats"))  # fmt: skip
    on: Name = Field("h100_sxm", max_length=SHORT, description="Device.",
                     **shown("Device", "select", "Machine", options="devices"))  # fmt: skip
    devices: int = Field(8, ge=1, le=4096, description="How many of them.",
                         **shown("Devices", "number", "Machine"))  # fmt: skip
    engine: Name = Field("vllm", max_length=SHORT, description="Serving engine.",
                         **shown("Engine", "select", "Machine", options="engines"))  # fmt: skip
    tp: int | None = Field(None, ge=1, le=1024, description="Tensor-parallel shards.",
                           **shown("tp", "number", "Layout"))  # fmt: skip
    pp: int | None = Field(None, ge=1, le=1024, description="Pipeline stages.",
                           **shown("pp", "number", "Layout"))  # fmt: skip
    dp: int | None = Field(None, ge=1, le=1024, description="Attention data-parallel groups.",
                           **shown("dp", "number", "Layout"))  # fmt: skip
    ep: int | None = Field(None, ge=1, le=1024, description="Expert-parallel groups.",
                           **shown("ep", "number", "Layout"))  # fmt: skip
    cp: int | None = Field(None, ge=1, le=1024, description="Devices that share a sequence.",
                           **shown("cp", "number", "Layout"))  # fmt: skip
    isl: int = Field(2048, ge=1, le=10_000_000, description="Prompt tokens of a request.",
                     **shown("Prompt", "number", "Traffic"))  # fmt: skip
    osl: int = Field(512, ge=1, le=1_000_000, description="Output tokens of a request.",
                     **shown("Output", "number", "Traffic"))  # fmt: skip
    batch: str = Field("32", pattern=r"^(max|[1-9][0-9]{0,6})$",
                       description="Requests in flight on each replica, or max.",
                       **shown("In flight", "text", "Traffic"))  # fmt: skip
    request_rate: float | None = Field(None, gt=0, le=1e9,
                                       description="Requests/s instead of those in flight.",
                                       **shown("Requests/s", "number", "Traffic"))  # fmt: skip
    prefix: float = Field(0.0, ge=0, lt=1, description="Share of the prompt common to all.",
                          **shown("Common prefix", "number", "Traffic"))  # fmt: skip
    price_per_h: float | None = Field(None, ge=0, le=1e9, description="USD per device and hour.",
                                      **shown("USD/h", "number", "Machine"))  # fmt: skip
    technique: list[str] = Field(default=[], max_length=12,
                                 description="Published techniques; they stack, in order.",
                                 **shown("Techniques", "switches", "Techniques",
                                          options="techniques"))  # fmt: skip
    what_if: list[str] = Field(default=[], max_length=12,
                               description="Changes of the device: memory.bandwidth=+20%.",
                               **shown("What if", "sliders", "What if"))  # fmt: skip

    @property
    def place(self) -> str:
        """Devices as the command line writes them: DEVICE, or DEVICE:N."""
        return f"{self.on}:{self.devices}" if self.devices != 1 or self.sizes else self.on

    @property
    def sizes(self) -> dict[str, int]:
        """The layout that was given."""
        return {n: v for n in _LAYOUT if (v := getattr(self, n)) is not None}

    def command(self) -> str:
        """`llm`."""
        words = ["ridgecast", "llm", self.model, "--on", self.place]
        words += options_of({
            "isl": self.isl, "osl": self.osl, "batch": self.batch,
            "request_rate": self.request_rate, **self.sizes,
            "engine": self.engine if self.engine != "vllm" else None, "dtype": self.dtype,
            "kv_dtype": self.kv_dtype, "technique": ",".join(self.technique),
            "prefix": self.prefix or None, "price_per_h": self.price_per_h,
            "what_if": self.what_if})  # fmt: skip
        return shlex.join(words)

    def python(self) -> str:
        """`rc.evaluate`."""
        batch = self.batch if self.batch == "max" else int(self.batch)
        traffic = f"{self.isl}, {self.osl}, {batch!r}"
        if self.request_rate:
            traffic += f", request_rate={self.request_rate}"
        if self.prefix:
            traffic += f", prefix={self.prefix}"
        options = f", traffic=rc.Traffic({traffic})"
        lines = ["import ridgecast as rc"]
        if self.sizes:
            lines.append("from ridgecast.models import Layout")
            options += f", layout=Layout({', '.join(f'{k}={v}' for k, v in self.sizes.items())})"
        for name in ("engine", "dtype", "kv_dtype", "price_per_h"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                options += f", {name}={value!r}"
        if self.technique:
            options += f", techniques={','.join(self.technique)!r}"
        changes = _halves(self.what_if)
        device = f"rc.hardware({self.on!r}).what_if({changes!r})" if changes else repr(self.on)
        lines += ["", f"a = rc.evaluate(rc.Scenario({self.model!r}, {device}, {self.devices}"
                  f"{options}))", "print(a.tpot, a.ttft, a.power, a.fits)"]  # fmt: skip
        return "\n".join(lines)


_LAYOUT = ("tp", "pp", "dp", "ep", "cp")
