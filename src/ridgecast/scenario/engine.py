"""Serving engines: what software adds to the work of a network. Facts and fitted numbers.

Owns reading `engines.toml` (each number with its kind and source) into `Engine`. Knows no network.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import SpecError, unknown_name

__all__ = ["Engine", "engine", "engine_names", "engine_sources"]

_FILE = Path(__file__).with_name("engines.toml")


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine does and costs; times in s, memory in B.

    `release` is the last one whose measured all-reduces count ("": the newest there are), a number.
    `chunk` tokens of prefill a pass at most (0: no limit), `mixed`: prefill and decode share a
    pass, `continuous`: finished requests are replaced at once (else batches are static).
    `pass_host` is host time a pass that no device work hides, `layer_host` the same a layer;
    `eager_launch` host time a kernel where no graph is replayed (`graph`: decode replays one),
    `unfused` the kernels that it launches where a fused engine launches one.
    `decode_factor` and `prefill_factor` scale what the device takes against kernels timed alone,
    `stall` the share of a prefill that delays running decodes; `prefill_launch` host
    time of each kernel of a prefill, which no graph replays; `request_host` host time of a request
    before its first pass, `pass_wait` how many decode passes it waits for. `context`, `workspace`,
    `communication`: bytes kept besides; `*_spread`: their standard deviation as a share. `page`
    tokens a page of cache; `memory_share` of the device may be used. `expert_skew`: exponent of the
    power law by which tokens spread over experts. `fused` parts of a network run
    inside other kernels, `fused_sums` inside the sums over tensor-parallel shards, where there are
    any. Parts `beside` run on a second stream while a layer's experts do, in steps of at most
    `beside_tokens` tokens a device. `tpot_low` ... `ttft_high`: factors between which 90 % of
    measured times lie about the predicted ones, for a network that nothing was fitted on.
    """

    name: str
    title: str = ""
    release: str = ""
    chunk: int = 8192
    mixed: bool = True
    continuous: bool = True
    graph: bool = True
    page: int = 16
    memory_share: float = 0.9
    pass_host: float = 0.0
    layer_host: float = 0.0
    eager_launch: float = 0.0
    unfused: float = 1.0
    decode_factor: float = 1.0
    prefill_factor: float = 1.0
    stall: float = 1.0
    prefill_launch: float = 0.0
    request_host: float = 0.0
    pass_wait: float = 1.0
    context: float = 0.0
    workspace: float = 0.0
    communication: float = 0.0
    fragmentation: float = 0.0
    activation_spread: float = 0.0
    fixed_spread: float = 0.0
    expert_skew: float = 0.0
    fused: tuple[str, ...] = ()
    fused_sums: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    beside_tokens: int = 0
    tpot_low: float = 1.0
    tpot_high: float = 1.0
    ttft_low: float = 1.0
    ttft_high: float = 1.0


@lru_cache(maxsize=1)
def _tables() -> Mapping[str, Mapping[str, Any]]:
    with _FILE.open("rb") as file:
        return tomllib.load(file)


def engine_names() -> list[str]:
    """Names of all engine profiles."""
    return sorted(name for name in _tables() if name != "all")


def engine(name: str) -> Engine:
    """Look up a profile, as "sglang" or, at a release, "sglang:0.5.9".

    Raises SpecError with the nearest three names, or for a release that is no number.
    """
    tables = _tables()
    name, _, release = name.strip().partition(":")
    if release and not re.match(r"\d+(\.\d+)*", release):
        raise SpecError(
            f"engine: got release {release!r} of {name}, need a number, as {name}:0.5.9"
        )
    key = name.strip().lower().replace("-", "").replace("_", "")
    key = {"tensorrtllm": "trtllm", "huggingface": "hf", "transformers": "hf"}.get(key, key)
    if key not in tables or key == "all":
        raise SpecError(unknown_name("engine", name, engine_names()))
    merged = {**tables["all"], **tables[key]}
    known = {f.name for f in fields(Engine)}
    values: dict[str, Any] = {
        k: v["value"] if isinstance(v, dict) else v for k, v in merged.items()
    }
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    strange = sorted(set(values) - known)
    if strange:
        raise SpecError(f"engines.toml: {key}: unknown field {strange[0]}")
    return Engine(name=key, release=release, **values)


def engine_sources(name: str) -> dict[str, dict[str, Any]]:
    """Every number of a profile with its kind and source."""
    merged = {**_tables()["all"], **_tables()[engine(name).name]}
    return {k: v for k, v in merged.items() if isinstance(v, dict)}
