"""What does not live on the device: seconds to fetch it, or to work on it where it is.

Owns weights and cache on other tiers (host memory, CXL, storage): which of them a pass needs, over
which link or at which unit, and what of it runs beside the device. Kernels on the device are not
its matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..hardware import Hardware
from ..models.network import Layout, Network, Tokens
from ..techniques.treatment import Treatment
from .floor import STEP
from .formats import Formats
from .host import Host, fetch_bandwidth
from .memory import kv_bytes, weight_bytes

__all__ = ["Away", "Place", "away", "new_tokens"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a network runs; `pinned` bytes of weights stay on the device (None: as treated)."""

    hardware: Hardware
    host: Host
    layout: Layout
    formats: Formats
    pinned: float | None = None


@dataclass(frozen=True, slots=True)
class Away:
    """Seconds [points] of one pass on the link and on the host (or in storage).

    `beside` are those that may run beside the device's own work, `alone` those that may not.
    """

    alone: Any
    link_beside: Any
    host_beside: Any

    def waited(self, busy: F64) -> F64:
        """Seconds that the device waits: the link and the host work at the same time as it."""
        longest = np.maximum(self.link_beside, self.host_beside)
        return np.asarray(self.alone + np.maximum(longest - busy, 0.0), np.float64)


def new_tokens(groups: Sequence[Any]) -> F64:
    """Tokens of all groups. Raises UnsupportedError for pictures, which have none."""
    if not all(isinstance(g, Tokens) for g in groups):
        raise UnsupportedError("pictures: work on the host and pipeline stages are for tokens only")
    return sum((np.asarray(g.count, np.float64) for g in groups), start=np.zeros(()))


def away(network: Network, place: Place, groups: Sequence[Any], t: Treatment) -> Away:
    """Seconds of a pass over what lives elsewhere.

    Raises UnsupportedError where the cache of pictures is placed elsewhere.
    """
    link, host = _weights(network, place, groups, t)
    link_kv, host_kv = _cache(network, place, groups, t)
    w, c = t.placement.overlap, t.kv.overlap
    alone = (0.0 if w else link + host) + (0.0 if c else link_kv + host_kv)
    return Away(
        alone,
        (link if w else 0.0) + (link_kv if c else 0.0),
        (host if w else 0.0) + (host_kv if c else 0.0),
    )


def _weights(
    network: Network, place: Place, groups: Sequence[Any], t: Treatment
) -> tuple[Any, Any]:
    """Seconds on the link and on the host of weights that live elsewhere."""
    p = t.placement
    share = 1.0 if p.device_share is None else p.device_share
    if share == 1.0 and place.pinned is None:
        return 0.0, 0.0
    here = weight_bytes(network, place.formats, place.layout, t, p.only)
    missing = here * (1.0 - share)
    if place.pinned is not None:
        total = weight_bytes(network, place.formats, place.layout, t)
        missing = min(max(total - place.pinned, 0.0), here)
    if missing <= 0:
        return 0.0, 0.0
    counted = p.only or p.compute != "device"  # else all of it is fetched, whatever it is for
    tokens = new_tokens(groups) if counted else np.zeros(())
    used = _routed(network, tokens, p.only)
    storage = place.formats.expert_storage if p.only else place.formats.linear_storage
    # two operations a weight and token, of experts only for the tokens that picked them
    flops = missing / storage.bytes_each * 2.0 * tokens * _picked(network, p.only) * p.touched
    needed = missing * used * p.touched * (1.0 - p.hit)
    link = needed / fetch_bandwidth(place.hardware, place.host, p.tier)
    if p.read_bytes and p.tier == "storage":
        link = link + needed / p.read_bytes * place.host.storage_read
    host = np.maximum(needed / place.host.memory_bandwidth,
                      flops * (1.0 - p.hit) / place.host.flops_per_s)  # fmt: skip
    if p.compute == "device":
        return link, 0.0
    if p.compute == "host":
        return 0.0, host
    # shared out so that both end together: rates add
    both = np.where(host > 0, link * host / np.maximum(link + host, 1e-30), 0.0)
    return both, both


def _routed(network: Network, tokens: F64, only: str) -> Any:
    """Share of the experts that a pass of `tokens` touches: 1 - (1 - k / E)^tokens, drawn evenly.

    Where all weights may live elsewhere, all are fetched.
    """
    if not only:
        return 1.0
    return 1.0 - (1.0 - _picked(network, only)) ** tokens


def _picked(network: Network, only: str) -> float:
    """Share of the weights of a role that one token uses."""
    kinds = [w for w in network.weights() if w.role == only] if only else []
    total = sum(w.total for w in kinds)
    return sum(w.total * w.per_token for w in kinds) / total if total else 1.0


def _cache(network: Network, place: Place, groups: Sequence[Any], t: Treatment) -> tuple[Any, Any]:
    """Seconds on the link and on the host (or in storage) of a cache that lives elsewhere."""
    if t.kv.place == "device":
        return 0.0, 0.0
    stored = replace(t, kv=replace(t.kv, index_bytes=0.0))
    read: Any = 0.0
    for g in groups:
        if not isinstance(g, Tokens):
            raise UnsupportedError("kv.place: caches of pictures are kept on the device only")
        each = kv_bytes(network, place.formats, place.layout, stored, g.kv_len)
        decode = (np.asarray(g.q_len) <= STEP) & (np.asarray(g.q_len) * 4 <= np.asarray(g.kv_len))
        here = np.asarray(g.batch) / place.layout.dp * each * t.kv.fetched
        read = read + np.where(decode, here * t.kv.read * (1.0 - t.kv.near), 0.0)
    if t.kv.attend == "device":
        return read / fetch_bandwidth(place.hardware, place.host, t.kv.place), 0.0
    host = place.host
    speed = host.memory_bandwidth if t.kv.attend == "host" else host.storage_internal
    return 0.0, read / speed
