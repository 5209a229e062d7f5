"""Numbers that the kernel formulas need and that no device file holds: latencies and rules.

Every entry carries its kind (spec, measured, derived, assumed) and source. Knows nothing of a
shape or of a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..hardware import Hardware

__all__ = ["LATENCIES", "SECTOR", "WAVEFRONT", "Latency", "latency_of", "mma_rows"]

SECTOR = 32.0
"""Bytes of the smallest L2 access (spec: CUDA C++ Programming Guide, device memory accesses)."""

WAVEFRONT = 128.0
"""Bytes shared memory serves in a cycle: 32 banks of 4 bytes (spec: CUDA C++ Programming Guide,
shared memory, compute capability 5.x and later)."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Load-to-use latency of each level in cycles of the device's clock, with kind and source."""

    shared: float
    l1: float
    l2: float
    memory: float
    kind: str
    source: str


_LUO = "after Luo et al. 2024, arXiv:2402.13499, memory latency table; not read again"
_JIA = "after Jia et al. 2018 (arXiv:1804.06826) and 2019 (arXiv:1903.07486); not read again"
LATENCIES: dict[str, Latency] = {
    "hopper": Latency(29.0, 40.7, 263.0, 478.8, "assumed", f"H100 PCIe: {_LUO}"),
    "ampere": Latency(29.0, 37.9, 261.5, 466.3, "assumed", f"A100: {_LUO}"),
    "ada": Latency(30.1, 43.4, 273.0, 541.5, "assumed", f"RTX 4090: {_LUO}"),
    "volta": Latency(19.0, 28.0, 193.0, 375.0, "assumed", f"V100: {_JIA}"),
    "turing": Latency(19.0, 32.0, 188.0, 296.0, "assumed", f"T4: {_JIA}"),
}
_OTHER = Latency(29.0, 40.7, 263.0, 478.8, "assumed", "no published figure used: Hopper's stand in")

_MMA_ROWS = {"sm_90": 64, "sm_100": 128, "sm_103": 128}


def latency_of(hardware: Hardware) -> Latency:
    """Latencies of the device's architecture; Hopper's where none is listed."""
    return LATENCIES.get(hardware.architecture, _OTHER)


def mma_rows(hardware: Hardware) -> int:
    """Rows of A that one matrix instruction multiplies straight from shared memory; 0 if none.

    64 on Hopper (wgmma), 128 on data-centre Blackwell (tcgen05); elsewhere fragments pass through
    registers warp by warp. Source: PTX ISA 8.7, wgmma.mma_async and tcgen05.mma (spec).
    """
    return _MMA_ROWS.get(hardware.isa, 0)
