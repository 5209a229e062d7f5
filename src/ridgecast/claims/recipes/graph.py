"""Graphs and sparse matrices: features from the host, products of sparse matrices."""

from __future__ import annotations

import numpy as np

from ...kernels.operator import link_of
from ..verdict import Finding, Found, NotModelled
from .kit import device, reached, span, work_of

__all__ = ["flashschnet", "gcn_zero_copy", "pytorch_direct", "smash_spgemm"]

_HOSTS = (20e9, 40e9, 80e9, 160e9)
"""B/s of host memory that a gather reaches: one to eight channels of DDR4-3200 at 25.6 GB/s, less
what random rows lose (swept: sources name no host)."""


def _feature_times(host: float, features: int) -> tuple[float, float, float]:
    """Seconds of the CPU's gather, of its copy, and of zero-copy reads, for a mini-batch.

    The CPU reads scattered rows and writes a dense block; the copy reads that block again.
    """
    shape = {
        "seeds": 1024,
        "nodes": 111_059_956,
        "degree": 29.0,
        "features": features,
        "fan_out_1": 15,
        "fan_out_2": 10,
        "source": "host",
    }
    link = link_of(device("rtx_3090"), "host").bandwidth / 2.0  # PCIe 3.0, as in the sources
    copied = work_of("neighbour_gather", access="copy", **shape).links["host"]
    direct = work_of("neighbour_gather", access="zero_copy", **shape).links["host"]
    return 2.0 * float(copied) / host, float(copied) / link, float(direct) / link


def pytorch_direct() -> list[Found]:
    """Features gathered by the CPU and copied, or read from host memory by the GPU."""
    less, places = [], []
    for host in _HOSTS:
        for features in (100, 128, 256, 1024):
            gather, copy, direct = _feature_times(host, features)
            less.append(100.0 * (1.0 - direct / (gather + copy)))
            places.append(f"{features} features, {host / 1e9:.0f} GB/s of host memory")
    # a step: transfer takes a third to nine tenths of it (swept)
    shares = np.array([1 / 3, 0.5, 0.7, 0.9])
    best = max(less) / 100.0
    whole = 1.0 / (1.0 - shares * best)
    told = [f"{100 * s:.0f} % transfer" for s in shares]
    return [
        Finding(0, span(less), at=reached(less, 47.1, places),
                range="100 to 1024 features a node, one to eight channels of host memory, PCIe 3"),
        Finding(1, span(whole), at=reached(whole, 1.6, told),
                range="transfer a third to nine tenths of an epoch, slowest host"),
        NotModelled(2, "power of a host's cores is not modelled"),
    ]  # fmt: skip


def gcn_zero_copy() -> list[Found]:
    """Zero-copy reads beside the training kernels, against gather, copy and kernels in turn."""
    gains, places = [], []
    for host in _HOSTS[:3]:
        for share in (0.5, 1.0, 1.5):  # kernels over zero-copy reads
            gather, copy, direct = _feature_times(host, 256)
            kernels = share * direct
            gains.append(100.0 * ((gather + copy + kernels) / max(direct, kernels) - 1.0))
            places.append(f"kernels {share:g} times the reads, host {host / 1e9:.0f} GB/s")
    sizes = "largest graph that was run: an input"
    return [
        Finding(0, span(gains), range="kernels half to one and a half times the reads, host memory "
                "of 20 to 80 GB/s", at="65 %: " + reached(gains, 65.0, places) + "; 92 %: "
                + reached(gains, 92.0, places),
                note="gathers that the baseline overlaps with kernels gain less"),
        NotModelled(1, sizes),
        NotModelled(2, sizes),
    ]  # fmt: skip


def flashschnet() -> list[Found]:
    """Keep edges on chip in a message-passing layer of coarse-grained molecules.

    269 beads, 64 replicas, 128 features, 50 radial functions (SchNet's usual sizes, assumed); 4 to
    40 neighbours a bead (swept). Tensors over edges: radial functions, two of the filter network,
    gathered neighbours, messages; over beads: about eight. Bytes decide time on any GPU.
    """
    beads, width, radial = 269 * 64, 128, 50
    less, faster, counts = [], [], (4, 8, 16, 40)
    for neighbours in counts:
        edges = beads * neighbours
        nodes = 8.0 * beads * width * 4.0
        apart = nodes + edges * (radial + 4 * width) * 4.0
        # indices and distances remain; neighbours are read where they lie, once each edge
        fused = nodes + edges * 12.0
        less.append(100.0 * (1.0 - fused / apart))
        moved = nodes + 2.0 * edges * (radial + 4 * width) * 4.0
        faster.append(moved / (fused + edges * width * 4.0))
    places = [f"{n} neighbours" for n in counts]
    where = "4 to 40 neighbours a bead"
    return [
        NotModelled(0, "steps a day of a whole simulation"),
        Finding(1, span(faster), at=reached(faster, 6.5, places), range=where),
        Finding(2, span(less), at=reached(less, 80.0, places), range=where),
    ]


def smash_spgemm() -> list[Found]:
    """Bytes of row-wise products merged on chip over those of expand, sort, compress."""
    ratios, degrees = [], (4, 16, 64, 128, 256)
    for degree in degrees:
        n = 1 << 14
        shape = {"m": n, "n": n, "k": n, "nnz_a": n * degree, "nnz_b": n * degree}
        apart, merged = (work_of("spgemm", variant=v, **shape) for v in ("esc", "hash"))
        ratios.append(float(apart.moved) / float(merged.moved))
    return [
        Finding(0, span(ratios), at=reached(ratios, 9.4, (f"{d} values a row" for d in degrees)),
                range="16 Ki x 16 Ki, 4 to 256 values a row, uniform; bytes of memory alone")
    ]  # fmt: skip
