"""What is asked of a model: traffic, machine, layout, engine, formats, techniques; and the answer.

Owns the values `Traffic`, `Scenario` and `Answer`, and how a scenario becomes the objects that the
solver works on. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InfeasibleError, SpecError
from ..hardware import Hardware, resolve
from ..models.network import Layout, Network
from ..techniques import Treatment, treatment_of
from .engine import Engine, engine
from .formats import Formats, formats_of
from .host import Host

__all__ = ["Answer", "Made", "Scenario", "Traffic"]

_UNITS = ("s", "w", "j", "usd", "bytes")
# what a notebook shows of an answer
_SHOWN = ("ttft_s", "tpot_s", "e2e_s", "output_tokens_per_s_per_gpu", "power_w",
          "energy_per_token_j", "cost_per_million_tokens_usd", "memory_bytes")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests: `isl` prompt tokens and `osl` output tokens each.

    `batch` requests are in flight on each replica, "max" as many as fit; or `request_rate`
    requests/s arrive at random at all replicas together (no `rounds` then). `prefix` is the share
    of a prompt that is common to all requests and cached. `rounds` are the requests that each
    client sends one after another, all clients starting at once, over which times are averaged: 10
    is what the usual serving benchmark does (its prompts number ten times its concurrency),
    infinity is the steady state.
    """

    isl: int = 2048
    osl: int = 512
    batch: int | str = 1
    request_rate: float | None = None
    prefix: float = 0.0
    rounds: float = 10.0

    def __post_init__(self) -> None:
        if not self.rounds >= 1:
            raise SpecError(f"traffic.rounds: got {self.rounds}, need requests a client, from 1")
        for name, least in (("isl", 1), ("osl", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SpecError(
                    f"traffic.{name}: got {value!r}, need a whole number of tokens >= 1"
                )
        whole = isinstance(self.batch, int) and not isinstance(self.batch, bool)
        if self.batch != "max" and not (whole and int(self.batch) >= 1):
            raise SpecError(f"traffic.batch: got {self.batch!r}, need a whole number >= 1, or max")
        if self.request_rate is not None and not 0 < self.request_rate < float("inf"):
            raise SpecError(
                f"traffic.request_rate: got {self.request_rate}, need requests/s above 0"
            )
        if not 0 <= self.prefix < 1:
            raise SpecError(f"traffic.prefix: got {self.prefix}, need a share from 0 to below 1")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A model on hardware under traffic.

    `model` is a shipped name, a config.json, a Hugging Face id or a `Network`; `hardware` a device
    name or a `Hardware`; `devices` how many there are. `layout` None spreads one replica over as
    many of them as its heads allow. `dtype` is the format of weights and products ("" as
    published), `experts` that of experts, `kv_dtype` that of the cache. `techniques` as on the
    command line ("kivi:bits=4,marlin"), or a `Treatment`. `trained` is a folder of trained models.
    """

    model: str | Network
    hardware: str | Hardware
    devices: int = 1
    layout: Layout | None = None
    traffic: Traffic = field(default_factory=Traffic)
    engine: str | Engine = "vllm"
    dtype: str = ""
    experts: str = ""
    kv_dtype: str = ""
    techniques: str | Treatment = ""
    host: Host = field(default_factory=Host)
    price_per_h: float | None = None
    trained: str | Path | None = None
    level: float = 0.9

    def __post_init__(self) -> None:
        if not isinstance(self.devices, int) or isinstance(self.devices, bool) or self.devices < 1:
            raise SpecError(f"scenario.devices: got {self.devices!r}, need a whole number >= 1")
        if self.price_per_h is not None and not 0 <= self.price_per_h < float("inf"):
            raise SpecError(f"scenario.price_per_h: got {self.price_per_h}, need USD/h from 0")

    def made(self) -> Made:
        """Look everything up. Raises SpecError for unknown names, InfeasibleError for layouts."""
        network = self.model
        if isinstance(network, str):
            from ..models import get

            network = get(network)
        device = resolve(self.hardware) if isinstance(self.hardware, str) else self.hardware
        treatment = self.techniques
        if isinstance(treatment, str):
            treatment = treatment_of(treatment)
        made = engine(self.engine) if isinstance(self.engine, str) else self.engine
        formats = formats_of(network, device, self.dtype, kv=self.kv_dtype,
                             experts=self.experts, treatment=treatment)  # fmt: skip
        layout = self.layout or spread(network, self.devices)
        if layout.devices > self.devices:
            raise InfeasibleError(
                f"layout: tp {layout.tp} x dp {layout.dp} x cp {layout.cp} x pp {layout.pp} needs "
                f"{layout.devices} devices, there are {self.devices}; ask for {layout.devices} "
                f"or make the layout smaller"
            )
        layers = getattr(getattr(network, "decoder", network), "layers", None)
        if isinstance(layers, int | float) and layout.pp > layers:
            raise InfeasibleError(
                f"layout.pp: {network.name} has {layers:g} layers, which {layout.pp} stages cannot "
                f"share; use at most {layers:g}"
            )
        return Made(network, device, layout, self.devices // layout.devices, made, formats,
                    treatment)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Made:
    """A scenario's objects, looked up and checked; `replicas` of them run side by side."""

    network: Network
    hardware: Hardware
    layout: Layout
    replicas: int
    engine: Engine
    formats: Formats
    treatment: Treatment


def spread(network: Network, devices: int) -> Layout:
    """Layout of one replica over as many of `devices` as divide its heads; tp within a node.

    Beyond eight devices, nodes become pipeline stages. Experts are cut with tp where their columns
    divide, else spread whole (ep).
    """
    for tp in sorted({d for d in (1, 2, 4, 8) if d <= devices}, reverse=True):
        stages = devices // tp if tp == 8 else 1
        for ep in (1, tp):
            try:
                layout = Layout(tp=tp, ep=ep, pp=max(1, stages))
                network.calls((), layout)
            except InfeasibleError:
                continue
            return layout
    return Layout()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a scenario takes, gives and costs; SI units, None with a reason where not known.

    Times [s] are of one request among `batch` in flight on each replica. `interval` maps a name to
    its 90 % ends. `shares` is the share of the time on each basis, `breakdown` seconds by part of
    the network for a decode and a prefill pass, `memory` bytes by component on the fullest device.
    """

    fits: bool
    batch: int
    replicas: int
    devices: int
    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None
    output_tokens_per_s_per_gpu: float | None = None
    power: float | None = None
    energy_per_token: float | None = None
    cost_per_million_tokens: float | None = None
    memory_total: float = 0.0
    memory_capacity: float = 0.0
    out_of_memory_probability: float = 0.0
    max_batch: int = 0
    limiter: str = ""
    basis: str = ""
    interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    breakdown: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    layout: Mapping[str, int] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    techniques: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """Rich display in a notebook."""
        from ..richtext import block, line, table
        from ..units import format_field as cell

        plain = self.to_dict()
        rows = [{"quantity": name.rpartition("_")[0] if name.rpartition("_")[2] in _UNITS else name,
                 **{end: cell(name, plain[key]) for end, key in
                    (("value", name), ("low", f"{name}_low"), ("high", f"{name}_high"))}}
                for name in _SHOWN]  # fmt: skip
        parts = [{"memory": k, "memory_bytes": v} for k, v in self.memory.items() if v > 0]
        fits = "" if self.fits else "does not fit; "
        title = (f"{fits}{self.batch} in flight (most that fits: {self.max_batch}) on "
                 f"{self.devices} devices")  # fmt: skip
        basis = f"limited by {self.limiter}; weakest basis {self.basis}" if self.fits else ""
        texts = [basis, *self.reasons] if basis else self.reasons
        return block(line(title, strong=True), table(rows) if self.fits else "",
                     table(parts, caption="memory of the fullest device"),
                     *(line(text) for text in texts))  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, under names that carry their unit."""
        out: dict[str, Any] = {}
        names = {
            "ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s",
            "output_tokens_per_s_per_gpu": "output_tokens_per_s_per_gpu", "power": "power_w",
            "energy_per_token": "energy_per_token_j",
            "cost_per_million_tokens": "cost_per_million_tokens_usd",
            "memory_total": "memory_bytes",
        }  # fmt: skip
        for ours, name in names.items():
            out[name] = getattr(self, ours)
            low, high = self.interval.get(ours, (None, None))
            stem, _, unit = name.rpartition("_")
            suffixed = unit in ("s", "w", "j", "bytes", "usd")
            out[f"{stem}_low_{unit}" if suffixed else f"{name}_low"] = low
            out[f"{stem}_high_{unit}" if suffixed else f"{name}_high"] = high
            out[f"{name}_low"], out[f"{name}_high"] = low, high
        return out | {
            "fits": self.fits, "batch": self.batch, "max_batch": self.max_batch,
            "replicas": self.replicas, "devices": self.devices,
            "memory_capacity_bytes": self.memory_capacity,
            "out_of_memory_probability": self.out_of_memory_probability,
            "limiter": self.limiter, "basis": self.basis, "shares": dict(self.shares),
            "breakdown_s": {k: dict(v) for k, v in self.breakdown.items()},
            "breakdown": {k: dict(v) for k, v in self.breakdown.items()},
            "memory_breakdown_bytes": dict(self.memory), "layout": dict(self.layout),
            "formats": dict(self.formats), "techniques": list(self.techniques),
            "reasons": list(self.reasons),
        }  # fmt: skip
