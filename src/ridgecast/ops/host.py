"""What the host does for a device: moving bytes over a link, launching kernels.

Owns bytes, messages and launches. Knows no device, no time: how long a launch or a link takes
belongs to the predictor, and a step whose host works while the device works is composed by
`overlapped` (its time is the larger of the two), never by a sum here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import F64, Amount, Op, Rule, Work, choice, flag, plain, size

__all__ = ["Launch", "Transfer"]


def _f(value: Amount) -> F64:
    return np.asarray(value, np.float64)


@dataclass(frozen=True)
class Transfer(Op):
    """Copy `payload` bytes between a device and its host, a peer, or another node.

    direction: to_device (written to its memory), from_device (read from it), both (`payload` each
    way: at once over a link that is `duplex`, else one after the other).

    Between host and device, `pinned` memory is read by the copy engine itself. Pageable memory goes
    through a pinned buffer: the host copies each byte once more. In `chunks`, that copy of a chunk
    overlaps the transfer of the one before, so one chunk's copy is exposed; it is counted as bytes
    of the same link, as if the host copied as fast as the link sends (NVIDIA, CUDA C++ Best
    Practices Guide 2024, "Pinned Memory" and "Asynchronous and Overlapping Transfers"). Each chunk
    is a message, and costs a launch. `zero_copy`: a kernel loads or stores over the link, with no
    copy in device memory ("Zero Copy", same guide).

    >>> Transfer(payload=1000, pinned=False, chunks=4).work().links["host"]  # 1000 + 1000 / 4
    1250.0
    """

    name: ClassVar[str] = "transfer"
    what: ClassVar[str] = "bytes over a link: host, peer or network; pinned or pageable; in chunks"
    not_monotone: ClassVar[tuple[str, ...]] = ("chunks",)  # more of the host's copy is hidden
    example: ClassVar[str] = "payload=1073741824 link=host direction=to_device"

    payload: int = size("bytes sent one way", high=2**53)
    link: str = choice("kind of link", ("host", "peer", "network"), "host")
    direction: str = choice("which way", ("to_device", "from_device", "both"), "to_device")
    pinned: bool = flag("host memory is pinned (always so for other links)", True)
    zero_copy: bool = flag("a kernel reads or writes over the link itself")
    duplex: bool = flag("the link sends both ways at once", True)
    chunks: int = size("messages that the payload is cut into", 1)

    def rules(self) -> Iterator[Rule]:
        """Chunks hold a byte at least; kernels reach pinned memory only."""
        yield Rule("chunks", np.greater(self.chunks, self.payload), "at most payload")
        if self.zero_copy and not self.pinned:
            yield Rule("zero_copy", True, "pinned=true")

    def work(self) -> Work:
        """Bytes of the link and of the device's memory."""
        payload, chunks = _f(self.payload), _f(self.chunks)
        both = self.direction == "both"
        sent = payload * (2.0 if both and not self.duplex else 1.0)
        if self.link == "host" and not self.pinned:
            sent = sent + payload / chunks * (2.0 if both else 1.0)
        read = 0.0 * payload if self.direction == "to_device" else payload
        written = 0.0 * payload if self.direction == "from_device" else payload
        held = read + written
        if self.zero_copy:  # the payload stays where it is; only the device's end is in its memory
            read, written, held = 0.0 * read, 0.0 * written, 0.0 * held
        return Work({}, plain(read), plain(written), resident=plain(held),
                    launches=plain(chunks * (2.0 if both else 1.0)),
                    links={self.link: plain(sent)}, hops={self.link: plain(chunks)})  # fmt: skip


@dataclass(frozen=True)
class Launch(Op):
    """Start `kernels` small kernels, `rounds` times, by stream or by replaying a graph.

    mode: stream (the host starts each kernel: kernels * rounds launches), graph (the host starts
    each round: `rounds` launches; on the device each kernel of the longest chain, `depth`, waits
    for the one before: a step each; with `capture`, the graph is recorded first by launching each
    kernel once: NVIDIA, CUDA C++ Programming Guide 2024, "CUDA Graphs"; Gray 2019, Getting Started
    with CUDA Graphs, NVIDIA developer blog). Arguments travel with the launch.

    Only launches and steps are counted. A model whose kernels are short is bound by its host: its
    step takes max(host, device), which is `overlapped(launch, work)`, not `sequential`.

    >>> Launch(kernels=500, rounds=10).work().launches
    5000.0
    >>> work = Launch(kernels=500, rounds=10, mode="graph").work()
    >>> work.launches, work.steps
    (10.0, 5000.0)
    """

    name: ClassVar[str] = "launch"
    what: ClassVar[str] = "starting kernels: one by one in a stream, or by graph replay"
    example: ClassVar[str] = "kernels=500 mode=graph"

    kernels: int = size("kernels a round")
    rounds: int = size("how often all of them run", 1)
    mode: str = choice("how the host starts them", ("stream", "graph"), "stream")
    depth: int = size("longest chain of kernels that wait for each other", like="kernels")
    capture: bool = flag("the graph is recorded first")

    def rules(self) -> Iterator[Rule]:
        """Chains are no longer than all kernels."""
        yield Rule("depth", np.greater(self.depth, self.kernels), "at most kernels")

    def work(self) -> Work:
        """Count launches by the host and waits on the device."""
        kernels, rounds = _f(self.kernels), _f(self.rounds)
        if self.mode == "stream":
            return Work(launches=plain(kernels * rounds))
        recorded = kernels * (1.0 if self.capture else 0.0)
        return Work(launches=plain(rounds + recorded), steps=plain(rounds * self.depth))
