"""What a network is: weights, what it keeps between passes, and the operations of one pass.

Owns the values that every family of networks speaks in (`Tokens`, `Layout`, `Weights`, `Cache`,
`Call`) and the base class `Network`. Knows shapes only: no number format, no device, no time.
Formats are chosen by `scenario` through the role of each call and weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InfeasibleError, SpecError

__all__ = ["ROLES", "Amount", "Cache", "Call", "Layout", "Network", "Tokens", "Weights",
           "activations_of", "caches_of", "ceil_div", "split", "weights_of"]  # fmt: skip

F64 = npt.NDArray[np.float64]
Amount = float | F64

ROLES = ("linear", "expert", "head", "embedding", "norm", "router", "conv", "attention", "other")
"""What a weight or a call is for; formats are given by role (experts often have their own)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sequences that take part in one forward pass; numbers, or arrays [points].

    `batch` sequences of the whole replica, each with `q_len` new tokens that attend to `kv_len`
    tokens, the new ones included. A pass may hold several groups (chunked prefill beside decode).
    `logits` are the rows a sequence that reach the output head. `first` says that nothing was
    cached before (prefill from scratch). A point with batch 0 has no such group.
    """

    batch: Amount = 1.0
    q_len: Amount = 1.0
    kv_len: Amount = 1.0
    logits: Amount = 1.0

    @property
    def count(self) -> Amount:
        """New tokens."""
        return self.batch * self.q_len


@dataclass(frozen=True, slots=True)
class Layout:
    """How one replica spreads over devices.

    Within a pipeline stage, `tp * dp * cp` devices work together: attention is cut into `tp`
    shards, `dp` groups hold different sequences (attention data parallelism), `cp` devices share
    one sequence's tokens. Expert layers use the same devices as `ep` groups of experts, each
    expert cut into `moe_tp` shards: ep * moe_tp = tp * dp * cp. `pp` stages hold different layers.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    cp: int = 1
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "ep", "cp", "gpus_per_node"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SpecError(f"layout.{name}: got {value!r}, need a whole number of at least 1")
        if self.stage_devices % self.ep:
            raise InfeasibleError(
                f"layout.ep: {self.ep} expert groups do not divide the {self.stage_devices} "
                f"devices of a stage (tp {self.tp} x dp {self.dp} x cp {self.cp}); "
                f"ep may be {_divisors(self.stage_devices)}"
            )

    @property
    def stage_devices(self) -> int:
        """Devices of one pipeline stage."""
        return self.tp * self.dp * self.cp

    @property
    def devices(self) -> int:
        """Devices of the replica."""
        return self.stage_devices * self.pp

    @property
    def moe_tp(self) -> int:
        """Shards that an expert is cut into."""
        return self.stage_devices // self.ep


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of one kind: `count` instances (layers) of `elements` each.

    `split` says how they spread over a stage: "tp" (cut into tp shards, repeated over dp and cp),
    "experts" (ep x moe_tp: over all devices), "none" (every device holds all). `per_token` is the
    share of the elements that one token uses (experts: top_k / experts), `trained` whether they
    are parameters at all (buffers are not). `ends` marks embedding and head: first or last stage.
    """

    part: str
    role: str
    elements: float
    count: float = 1.0
    split: str = "tp"
    per_token: float = 1.0
    ends: bool = False

    @property
    def total(self) -> float:
        """Parameters of all instances."""
        return self.elements * self.count


@dataclass(frozen=True, slots=True)
class Cache:
    """What is kept of a sequence between passes, in `layers` layers alike.

    `per_token` elements for each cached token (of the last `window` tokens only, where > 0) and
    `fixed` elements a sequence whatever its length (states). `kind`: "kv", "latent" (MLA), "state"
    (recurrent, kept in fp32 by most engines), "cross" (encoder outputs). `heads` are what tensor
    parallelism can cut; 1 cannot be cut and is repeated on every shard.
    """

    kind: str
    layers: float
    per_token: float = 0.0
    fixed: float = 0.0
    window: int = 0
    heads: int = 1

    def elements(self, length: Amount, tp: int = 1) -> Amount:
        """Elements that one shard keeps of one sequence of `length` tokens, all layers."""
        kept = np.minimum(length, self.window) if self.window else length
        share = max(1, -(-self.heads // tp)) / self.heads
        return self.layers * share * (self.per_token * kept + self.fixed)


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of a pass on one device: a name of `ops`, its fields, and how often.

    `fields` hold numbers or arrays [points], without number formats: those follow from `role`.
    Bytes of collectives are stated for 2-byte elements. `part` names the piece of the network
    ("qkv", "attention", "experts" ...) for breakdowns. `count` times a pass, all layers of all
    pipeline stages together (0 where a point has none).
    """

    part: str
    op: str
    fields: Mapping[str, Any]
    count: Amount = 1.0
    role: str = "other"
    phase: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """A network. Families derive from it and define `weights`, `calls`, `caches`, `activations`."""

    name: str
    title: str = field(default="", kw_only=True)
    source: str = field(default="", kw_only=True)
    native_dtype: str = field(default="bf16", kw_only=True)
    """Format that the published weights come in."""

    def weights(self) -> tuple[Weights, ...]:
        """List all parameters, by kind."""
        raise NotImplementedError

    def caches(self) -> tuple[Cache, ...]:
        """List what is kept of a sequence between passes; nothing by default."""
        return ()

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of one pass over `groups` on one device of each stage.

        Raises InfeasibleError for a layout that does not divide heads or experts.
        """
        raise NotImplementedError

    def activations(self, tokens: Amount, layout: Layout) -> Amount:
        """Elements of transient memory on one device at the peak of a pass over `tokens`."""
        raise NotImplementedError

    @property
    def parameters(self) -> float:
        """All parameters."""
        return sum(w.total for w in self.weights())

    @property
    def active_parameters(self) -> float:
        """Parameters that one token uses (embedding tables: one row)."""
        return sum(w.total * w.per_token for w in self.weights() if w.role != "embedding") + sum(
            w.total * w.per_token for w in self.weights() if w.role == "embedding"
        )


def weights_of(network: Network) -> tuple[Weights, ...]:
    """List a network's parameters, once: searches ask for them thousands of times."""
    return _once(_weights, network)


def caches_of(network: Network) -> tuple[Cache, ...]:
    """List what a network keeps between passes, once."""
    return _once(_caches, network)


def activations_of(network: Network, tokens: float, layout: Layout) -> float:
    """Elements of transient memory of a pass over `tokens`, once for each."""
    return _once(_activations, network, tokens, layout)


@lru_cache(maxsize=128)
def _weights(network: Network) -> tuple[Weights, ...]:
    return network.weights()


@lru_cache(maxsize=128)
def _caches(network: Network) -> tuple[Cache, ...]:
    return network.caches()


@lru_cache(maxsize=4096)
def _activations(network: Network, tokens: float, layout: Layout) -> float:
    return float(network.activations(tokens, layout))


def _once(function: Any, network: Network, *rest: Any) -> Any:
    """Call a remembered function; networks read from graphs hold lists and are asked again."""
    try:
        hash(network)
    except TypeError:
        return function.__wrapped__(network, *rest)
    return function(network, *rest)


def split(total: int, parts: int, what: str) -> int:
    """Share of `total` heads, experts or columns that each of `parts` devices holds.

    Raises InfeasibleError where they do not divide, naming what would.
    """
    if total % parts:
        raise InfeasibleError(
            f"{what}: {total} do not divide by {parts}; use one of {_divisors(total)}"
        )
    return total // parts


def ceil_div(a: Amount, b: float) -> Amount:
    """Divide and round up."""
    return np.ceil(np.asarray(a, np.float64) / b) if isinstance(a, np.ndarray) else -(-a // b)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, min(n, 512) + 1) if n % d == 0)
