"""Memory of one device, by component; the largest batch that fits; how likely it is to run out.

Owns the sum of weights, cache, activations and what an engine keeps besides. Counts of elements
come from the network, bytes from formats. Knows no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import erf, sqrt

import numpy as np
import numpy.typing as npt

from ..models.network import (
    Amount,
    Layout,
    Network,
    Tokens,
    Weights,
    activations_of,
    caches_of,
    weights_of,
)
from ..techniques.treatment import Treatment
from .engine import Engine
from .formats import Formats

__all__ = ["Memory", "Room", "kv_bytes", "memory_of", "weight_bytes"]

STATE_BYTES = 4.0  # recurrent states are kept in fp32 (Mamba: Gu and Dao 2023, section 3.3.2)
_MERGED = 2.0  # bytes an element of 16-bit activations


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that the fullest device holds, by component; `host` and `storage` hold the rest.

    `total` is the sum on the device. `low` and `high` are the ends of its 90 % interval: weights
    and cache are counted exactly, the rest is as uncertain as its sources say (`Engine`).
    """

    weights: float
    kv: float
    activations: float
    workspace: float
    context: float
    communication: float
    fragmentation: float
    spread: float
    host: float = 0.0
    storage: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return sum(self.parts().values())

    @property
    def low(self) -> float:
        """5 % quantile of the total."""
        return max(self.total - 1.645 * self.spread, self.weights + self.kv)

    @property
    def high(self) -> float:
        """95 % quantile of the total."""
        return self.total + 1.645 * self.spread

    def parts(self) -> dict[str, float]:
        """Bytes by component."""
        names = ("weights", "kv", "activations", "workspace", "context", "communication",
                 "fragmentation")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def risk(self, capacity: float) -> float:
        """Probability that the total exceeds `capacity` bytes, normal about the total."""
        if self.spread <= 0:
            return float(self.total > capacity)
        return 0.5 * (1.0 - erf((capacity - self.total) / (self.spread * sqrt(2.0))))


@dataclass(frozen=True, slots=True)
class Room:
    """What memory has to hold: sequences of `length` tokens, `pass_tokens` of a pass at once.

    `prompt` are the tokens of each that may be shared (Treatment.kv.shared of them are).
    """

    batch: float
    length: float
    pass_tokens: float
    prompt: float = 0.0


def weight_bytes(
    network: Network, formats: Formats, layout: Layout, t: Treatment, role: str = ""
) -> float:
    """Bytes of weights (of one role) of the fullest device of the replica, wherever they live."""
    kinds = [w for w in weights_of(network) if role in ("", w.role)]
    return sum(_on_device(w, formats, layout, t) for w in kinds)


def _on_device(w: Weights, formats: Formats, layout: Layout, t: Treatment) -> float:
    parts = {"tp": layout.tp, "experts": layout.stage_devices, "none": 1}[w.split]
    stages = 1 if w.ends else layout.pp
    rounded = np.ceil(w.count / stages) if w.count >= stages else w.count / stages
    storage = formats.storage(w.role)
    each = w.elements * storage.bytes_each / parts
    kept = t.reduction.neurons if w.role in ("expert",) and t.reduction.neurons < 1 else 1.0
    return float(each * rounded * kept)


def _kept(t: Treatment, length: Amount) -> npt.NDArray[np.float64]:
    """Tokens of a sequence whose keys and values are kept."""
    kept = np.asarray(length, np.float64) * t.kv.keep
    return np.minimum(kept, float(t.kv.budget)) if t.kv.budget else kept


def kv_bytes(
    network: Network, formats: Formats, layout: Layout, t: Treatment, length: Amount
) -> Amount:
    """Bytes of cache that one sequence of `length` tokens takes on one device, whole replica.

    The sequence lives on one of the dp groups; tp shards cut it as far as its heads allow, cp
    devices share its tokens, pp stages hold their own layers. States are kept whole on each of
    them, and in no pages.
    """
    kept = _kept(t, length)
    tokens: Amount = 0.0
    states: Amount = 0.0
    for cache in caches_of(network):
        elements = cache.elements(kept, layout.tp) / layout.pp
        if cache.kind == "state":
            states = states + elements * STATE_BYTES
            continue
        each = formats.kv.bytes_each * t.kv.elements
        tokens = tokens + elements * each
        if t.kv.recent:
            last = cache.elements(np.minimum(kept, t.kv.recent), layout.tp) / layout.pp
            tokens = tokens + last * (_MERGED - each)
    tokens = np.asarray(tokens) / layout.cp
    tokens = tokens + _index_bytes(network, layout, t, kept)
    if t.kv.page > 1:  # the last page of a sequence is half empty on average
        tokens = tokens * (1.0 + 0.5 * t.kv.page / np.maximum(kept, t.kv.page))
    return tokens / (1.0 - t.kv.waste) + states


def _index_bytes(network: Network, layout: Layout, t: Treatment, kept: Amount) -> Amount:
    """Bytes of what selection looks through, for one sequence of `kept` tokens."""
    heads = sum(c.layers * max(1, c.heads // layout.tp) for c in caches_of(network)) / layout.pp
    return t.kv.index_bytes * np.asarray(kept, np.float64) * heads


def _prefilling(network: Network, formats: Formats, layout: Layout, room: Room, t: Treatment,
                each: float) -> float:  # fmt: skip
    """Bytes of cache beyond what is kept that the prompts of a pass hold until it is dropped."""
    if not t.kv.peak:
        return 0.0
    prompt = room.prompt or room.length
    whole = replace(t, kv=replace(t.kv, keep=1.0, budget=0))
    full = float(kv_bytes(network, formats, layout, whole, prompt))
    prompts = np.clip(room.pass_tokens / prompt, 1.0, room.batch) / layout.dp
    return float(np.ceil(prompts)) * max(t.kv.peak * full - each, 0.0)


def memory_of(
    network: Network, formats: Formats, layout: Layout, engine: Engine, room: Room,
    t: Treatment, pinned: float | None = None,
) -> Memory:  # fmt: skip
    """Bytes of the fullest device with `room.batch` sequences in the replica.

    `pinned` are bytes of weights that stay on the device, by default those of the placement.
    """
    weights = weight_bytes(network, formats, layout, t)
    share = 1.0 if t.placement.device_share is None else t.placement.device_share
    movable = weight_bytes(network, formats, layout, t, t.placement.only)
    held = weights - movable * (1.0 - share) if pinned is None else pinned
    weights_total = held + t.speculation.memory * weights + _adapters(network, t) / layout.devices
    here = np.ceil(room.batch / layout.dp)
    each = float(kv_bytes(network, formats, layout, t, room.length))
    shared = t.kv.shared * min(room.prompt, room.length)
    if shared > 0:
        # every sequence has states and a window of its own, whatever it shares
        alone = float(kv_bytes(network, formats, layout, t, 0.0))
        own = float(kv_bytes(network, formats, layout, t, room.length - shared))
        kv = here * own + float(kv_bytes(network, formats, layout, t, shared)) - alone
    else:
        kv = here * each
    on_device, off_device = kv, 0.0
    if t.kv.place != "device":
        index = here * float(_index_bytes(network, layout, t, _kept(t, room.length)))
        on_device = index + (kv - index) * t.kv.near
        # of low-rank keys nothing but the values is kept elsewhere
        off_device = 0.5 * (kv - index) if t.kv.rank else kv - on_device
    on_device += _prefilling(network, formats, layout, room, t, each)
    if t.speculation.draft_cache and t.kv.place != "device":
        draft = min(t.speculation.draft_cache, room.length)
        on_device += here * float(kv_bytes(network, formats, layout, t, draft)) * (1.0 - t.kv.near)
    tokens = room.pass_tokens / layout.dp
    activations = activations_of(network, float(tokens), layout) * _MERGED
    activations += _rebuilt(network, formats, layout, t, each * here)
    if t.attention == "standard":
        activations += _scores(network, layout, tokens, min(room.prompt, room.length))
    comm = engine.communication if layout.devices > 1 else 0.0
    fragmentation = engine.fragmentation * (on_device + activations)
    spread = sqrt((engine.activation_spread * activations) ** 2 + (engine.fixed_spread * (
        engine.workspace + engine.context + comm)) ** 2 + (0.5 * fragmentation) ** 2)  # fmt: skip
    away = {t.kv.place: off_device} if t.kv.place != "device" else {}
    away[t.placement.tier] = away.get(t.placement.tier, 0.0) + weights - held
    return Memory(
        float(weights_total), float(on_device), activations, engine.workspace, engine.context,
        comm, fragmentation, spread, host=float(away.get("host", 0.0) + away.get("cxl", 0.0)),
        storage=float(away.get("storage", 0.0)),
    )  # fmt: skip


def _scores(network: Network, layout: Layout, tokens: float, length: float) -> float:
    """Bytes of one layer's scores and probabilities where they pass through memory, 16 bits each.

    Every new token of a pass has one of each for every head and token of its prompt.
    """
    calls = network.calls([Tokens()], layout)
    heads = [np.max(c.fields["q_heads"]) for c in calls if "q_heads" in c.fields]
    return 2.0 * _MERGED * float(max(heads, default=0.0)) * tokens * length


def _adapters(network: Network, t: Treatment) -> float:
    """Bytes of adapters: rank (rows + columns) a matrix, about 2 rank sqrt(elements) each."""
    if not t.adapters:
        return 0.0
    each = sum(
        2.0 * t.adapter_rank * sqrt(w.elements) * w.count
        for w in weights_of(network)
        if w.role == "linear"
    )
    return t.adapters * each * _MERGED


def _rebuilt(network: Network, formats: Formats, layout: Layout, t: Treatment, kv: float) -> float:
    """Bytes of full-precision copies that formats rebuild in memory: one layer's worth."""
    extra = 0.0
    if formats.linear_storage.rebuild or formats.expert_storage.rebuild:
        kinds = [w for w in weights_of(network) if w.role in ("linear", "expert") and w.count > 0]
        layers = max((w.count for w in kinds), default=1.0)
        extra += sum(w.total for w in kinds) / layers * _MERGED / layout.stage_devices
    if formats.kv.rebuild and kv > 0:
        layers = max(sum(c.layers for c in caches_of(network)), 1.0)
        extra += kv / formats.kv.bytes_each * _MERGED / layers
    return extra


def fits(memory: Mapping[str, float] | Memory, capacity: float) -> bool:
    """Whether the total is within capacity."""
    total = memory.total if isinstance(memory, Memory) else sum(memory.values())
    return total <= capacity
