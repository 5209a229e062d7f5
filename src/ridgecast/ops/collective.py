"""Collectives: what many devices send each other for a sum, a gather or an exchange.

Owns bytes and messages of each algorithm from the buffer's size and the number of devices and
nodes. Knows neither the speed of a link nor which algorithm a library picks.

S is the buffer, n the devices, L those of a node, M = n / L the nodes. Sources: Thakur,
Rabenseifner, Gropp 2005, "Optimization of Collective Communication Operations in MPICH" (IJHPCA
19(1)), sections 4.1 to 4.5; Patarasuk, Yuan 2009 (JPDC 69(2)) for the ring and the least bytes of
an all-reduce; Sanders, Speck, Traeff 2009 (Parallel Computing 35(12)) for two trees at once; Klenk
et al. 2020 (ISCA) for sums inside the switch; bus bandwidth: doc/PERFORMANCE.md of nccl-tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..dtypes import dtype
from ..errors import SpecError
from .base import Amount, Op, Rule, Work, choice, fmt, number, plain, size

__all__ = ["Collective"]

F64 = npt.NDArray[np.float64]
# kind -> its algorithms, the one with the least bytes first
_KINDS: dict[str, tuple[str, ...]] = {
    "all_reduce": ("ring", "tree", "halving_doubling", "hierarchical", "two_shot", "one_shot",
                   "in_switch"),
    "all_gather": ("ring", "halving_doubling", "direct"),
    "reduce_scatter": ("ring", "halving_doubling", "direct"),
    "all_to_all": ("direct", "pairwise", "bruck"),
    "send_recv": ("direct",),
    "broadcast": ("ring", "tree", "scatter_gather", "direct", "in_switch"),
}  # fmt: skip
_ALGORITHMS = ("auto", *dict.fromkeys(a for names in _KINDS.values() for a in names))


@dataclass(frozen=True, slots=True)
class _Sent:
    """Bytes that a device sends, messages on the critical path: to its node, to other nodes."""

    peer: F64 | float = 0.0
    network: F64 | float = 0.0
    peer_hops: F64 | float = 0.0
    network_hops: F64 | float = 0.0


@dataclass(frozen=True)
class Collective(Op):
    """One collective over `gpus` devices, `gpus_per_node` of which share a node.

    `bytes` is the whole buffer S: what each device puts in and gets out of an all_reduce or
    all_to_all, what each has in the end of an all_gather and in the beginning of a reduce_scatter,
    the message of a broadcast or send_recv.

    Bytes that the busiest device sends, and messages on the critical path, with one node (M = 1):
    ring: 2 S (n-1)/n in 2 (n-1), half of each for all_gather and reduce_scatter. tree: as many in
    2 ceil(log2 n). halving_doubling: as many in 2 log2 n; S and 2 messages more where n is no power
    of two. two_shot: as many in 2, every device with every other. one_shot:
    S (n-1) in 1. in_switch: S (n+1)/n in 2, the switch adds up. direct: all others at once;
    pairwise: one after the other; bruck: about S/2 log2 n in ceil(log2 n).
    Over nodes: ring and tree cross the network where a node ends, on as many rails as it has
    devices; hierarchical sums in the node first, so that S/L crosses. auto is the first that the
    kind has (`algorithms`); whoever knows the links' speed picks the fastest (`candidates`).

    >>> Collective(kind="all_reduce", bytes=1 << 20, gpus=8).work().links["peer"]
    1835008.0
    """

    name: ClassVar[str] = "collective"
    what: ClassVar[str] = "collectives: all-reduce, all-gather, all-to-all ..., by algorithm"
    example: ClassVar[str] = "kind=all_reduce bytes=16777216 gpus=8"

    kind: str = choice("which collective", tuple(_KINDS))
    bytes: float = number("the whole buffer of a device", 0.0, low=1.0)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    gpus: int = size("devices that take part", 2, low=2)
    gpus_per_node: int = size("devices that reach each other without the network", 8)
    algorithm: str = choice("how it is done; auto: left to who knows the links", _ALGORITHMS,
                            "auto")  # fmt: skip
    dtype: str = fmt("format of the elements, for sums")

    def rules(self) -> Iterator[Rule]:
        """Check that the algorithm belongs to the kind, and that nodes are full.

        Raises SpecError for the algorithm.
        """
        if self.algorithm not in ("auto", *self.algorithms):
            told = f"need auto or one of {', '.join(self.algorithms)} for {self.kind}"
            raise SpecError(f"{self.name}.algorithm: got {self.algorithm!r}, {told}")
        whole = np.mod(self.gpus, np.minimum(self.gpus_per_node, self.gpus)) != 0
        yield Rule("gpus_per_node", whole, "a divisor of gpus, or more than them")
        two = self.kind == "send_recv"
        yield Rule("gpus", two & np.not_equal(self.gpus, 2), "2 for send_recv")

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Algorithms of this kind, the one with the least bytes first."""
        return _KINDS[self.kind]

    def candidates(self) -> dict[str, Work]:
        """Work of each algorithm of this kind."""
        return {a: self._by(a) for a in self.algorithms}

    @property
    def bus_factor(self) -> Amount:
        """Bus bandwidth over S / time, after nccl-tests: what a link passes, whatever n."""
        n = np.asarray(self.gpus, np.float64)
        if self.kind in ("broadcast", "send_recv"):
            return plain(np.ones_like(n))
        return plain((2.0 if self.kind == "all_reduce" else 1.0) * (n - 1.0) / n)

    def work(self) -> Work:
        """Bytes, messages and sums of the algorithm; of the first where it is auto."""
        return self._by(self.algorithms[0] if self.algorithm == "auto" else self.algorithm)

    @property
    def _n(self) -> F64:
        return np.asarray(self.gpus, np.float64)

    @property
    def _local(self) -> F64:
        return np.minimum(np.asarray(self.gpus_per_node, np.float64), self._n)

    @property
    def _nodes(self) -> F64:
        return self._n / self._local

    def _by(self, algorithm: str) -> Work:
        sent = getattr(self, f"_{algorithm}")()
        s, n = np.asarray(self.bytes, np.float64), self._n
        out = np.asarray(sent.peer + sent.network, np.float64)
        added = 0.0
        if self.kind == "all_reduce":
            added = {"one_shot": s * (n - 1.0), "in_switch": 0.0}.get(algorithm, s * (n - 1.0) / n)
        if self.kind == "reduce_scatter":
            added = s * (n - 1.0) / n
        width = dtype(self.dtype).bytes_of(1.0)
        flops: dict[str, Amount] = {"vector": plain(added / width)}
        links: dict[str, Amount] = {"peer": plain(sent.peer)}
        hops: dict[str, Amount] = {"peer": plain(sent.peer_hops)}
        if np.any(np.greater(self._nodes, 1.0)):
            links["network"] = plain(sent.network)
            hops["network"] = plain(sent.network_hops)
        # what is sent is read, and one's own part of a sum; what arrives is written, but where
        # the receiver reads the others' memory and only writes the result
        shot = algorithm in ("one_shot", "two_shot", "in_switch")
        read, written = (out + s, s) if shot else (out + added, np.maximum(out, s * (n - 1.0) / n))
        distinct = np.minimum(2.0 * s, read + written)
        return Work(flops, plain(read), plain(written), footprint=plain(distinct),
                    resident=plain(2.0 * s), links=links, hops=hops)  # fmt: skip

    # ------------------------------------------------------------------------------ algorithms

    @property
    def _rounds(self) -> float:
        """Passes over the buffer: an all-reduce scatters sums and gathers them."""
        return 2.0 if self.kind == "all_reduce" else 1.0

    def _chain(self, volume: F64, hops: F64) -> _Sent:
        """Neighbour to neighbour through all devices; the last of a node sends to the next one."""
        local, nodes = self._local, self._nodes
        far = np.where(nodes > 1.0, 1.0 / local, 0.0)
        return _Sent(volume * (1.0 - far), volume * far, hops * (1.0 - far), hops * far)

    def _ring(self) -> _Sent:
        n = self._n
        steps = self._rounds * (n - 1.0)
        if self.kind == "broadcast":  # all but the last pass on everything, in pieces
            return self._chain(np.asarray(self.bytes) + 0.0 * n, steps)
        return self._chain(np.asarray(self.bytes) * steps / n, steps)

    def _tree(self) -> _Sent:
        n, local, nodes = self._n, self._local, self._nodes
        s = np.asarray(self.bytes, np.float64)
        up_down = self._rounds
        near, far = up_down * np.ceil(np.log2(local)), up_down * np.ceil(np.log2(nodes))
        if self.kind == "broadcast":
            return _Sent(s * (local > 1.0), s / local * (nodes > 1.0), near, far)
        edge = up_down * s / n  # all but the root send once each way; two trees even it out
        return _Sent(edge * (n - nodes), edge * (nodes - 1.0), near, far)

    def _halving_doubling(self) -> _Sent:
        s, local, nodes, r = np.asarray(self.bytes), self._local, self._nodes, self._rounds
        near, far = np.floor(np.log2(local)), np.floor(np.log2(nodes))
        # devices beyond a power of two hand theirs to another before and get the result after
        odd_near = np.where(local > 2.0**near, 1.0, 0.0)
        odd_far = np.where(nodes > 2.0**far, 1.0, 0.0)
        inside = s * (r * (1.0 - 0.5**near) + odd_near)
        across = s / local * (r * (1.0 - 0.5**far) + odd_far)
        return _Sent(inside, across, r * near + 2.0 * odd_near, r * far + 2.0 * odd_far)

    def _hierarchical(self) -> _Sent:
        s, local, nodes = np.asarray(self.bytes), self._local, self._nodes
        return _Sent(2.0 * s * (local - 1.0) / local,
                     2.0 * s / local * (nodes - 1.0) / nodes,
                     2.0 * (local - 1.0), 2.0 * (nodes - 1.0))  # fmt: skip

    def _everyone(self, each: F64, times: float) -> _Sent:
        """`each` bytes to every other device, all at once, `times` times."""
        n, local = self._n, self._local
        far = np.where(n > local, times, 0.0)
        near = np.where(local > 1.0, times, 0.0)
        return _Sent(times * each * (local - 1.0), times * each * (n - local), near, far)

    def _one_shot(self) -> _Sent:
        return self._everyone(np.asarray(self.bytes, np.float64), 1.0)

    def _two_shot(self) -> _Sent:
        return self._everyone(np.asarray(self.bytes) / self._n, 2.0)

    def _direct(self) -> _Sent:
        s = np.asarray(self.bytes, np.float64)
        whole = self.kind in ("broadcast", "send_recv")
        return self._everyone(s if whole else s / self._n, 1.0)

    def _pairwise(self) -> _Sent:
        n, local, s = self._n, self._local, np.asarray(self.bytes, np.float64)
        return _Sent(s / n * (local - 1.0), s / n * (n - local), local - 1.0, n - local)

    def _bruck(self) -> _Sent:
        """Send, in step j, the parts whose number has bit j to the device 2^j further."""
        s, n, local = np.asarray(self.bytes), self._n, self._local
        peer, network = np.zeros_like(s * n), np.zeros_like(s * n)
        near, far = np.zeros_like(n), np.zeros_like(n)
        step = 1.0
        while step < np.max(n):
            blocks = np.floor(n / (2.0 * step)) * step
            blocks = blocks + np.maximum(np.mod(n, 2.0 * step) - step, 0.0)
            inside = (local == n) | (2.0 * step <= local)
            peer, network = peer + inside * s / n * blocks, network + ~inside * s / n * blocks
            near, far = near + inside * (step < n), far + ~inside * (step < n)
            step *= 2.0
        return _Sent(peer, network, near, far)

    def _scatter_gather(self) -> _Sent:
        n = self._n
        scattered = np.ceil(np.log2(n))
        return self._chain(np.asarray(self.bytes) * 2.0 * (n - 1.0) / n, scattered + n - 1.0)

    def _in_switch(self) -> _Sent:
        """Let the switch read every device's part and send all the sum: S up, and S / n of sums.

        Between nodes a tree of the nodes' sums, each device its part.
        """
        s, local, nodes = np.asarray(self.bytes, np.float64), self._local, self._nodes
        alone = local <= 1.0
        far = self._rounds * s / local * (nodes - 1.0) / nodes
        steps = self._rounds * np.ceil(np.log2(nodes))
        if self.kind == "broadcast":
            return _Sent(np.where(alone, 0.0, s), far, np.where(alone, 0.0, 1.0), steps)
        return _Sent(np.where(alone, 0.0, s * (local + 1.0) / local), far,
                     np.where(alone, 0.0, 2.0), steps)  # fmt: skip

    def with_algorithm(self, algorithm: str) -> Collective:
        """Copy that is done in one way."""
        return replace(self, algorithm=algorithm)
