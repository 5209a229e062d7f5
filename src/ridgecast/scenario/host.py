"""The machine around the devices: host memory, storage, and the links between.

Owns the numbers that placement techniques need and a device's spec does not hold. Defaults are of a
two-socket server with eight devices; every one can be replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnsupportedError
from ..hardware import Hardware
from ..kernels.operator import link_of

__all__ = ["Host", "fetch_bandwidth"]


@dataclass(frozen=True, slots=True)
class Host:
    """Host of one device: bandwidths [B/s], rates [flop/s], capacities [B], per device.

    Defaults: two sockets of 12 channels DDR5-4800 (460.8 GB/s each, EPYC 9004 data sheet) and
    2 TB for eight devices; 4 flop a cycle, lane and core of 96-core sockets at 2.4 GHz with 16
    fp32 lanes, halved for what products reach (assumed); one NVMe drive a device (7.68 TB,
    7 GB/s read, PCIe 4.0 x4); CXL 2.0 over PCIe 5.0 x16 (64 GB/s). `storage_internal` is what
    computation inside storage may read (flash channels of a drive, assumed twice its link),
    `storage_read` seconds that a read costs besides its bytes (a million random reads/s: NVMe
    drives of PCIe 4.0).
    """

    memory_bandwidth: float = 2 * 460.8e9 / 8
    memory_capacity: float = 2e12 / 8
    flops_per_s: float = 2 * 96 * 2.4e9 * 16 * 4 / 2 / 8
    storage_bandwidth: float = 7e9
    storage_internal: float = 14e9
    storage_read: float = 1e-6
    storage_capacity: float = 7.68e12
    cxl_bandwidth: float = 64e9
    memory_power: float | None = None


def fetch_bandwidth(hardware: Hardware, host: Host, tier: str) -> float:
    """Bytes per second at which a device gets what lives on a tier: host, cxl or storage.

    The link to the device bounds all of them, host memory's own bandwidth too.
    """
    try:
        link = link_of(hardware, "host").bandwidth
    except UnsupportedError:
        link = 64e9  # PCIe 5.0 x16, assumed where a device names no host link
    level = {"host": host.memory_bandwidth, "cxl": host.cxl_bandwidth,
             "storage": host.storage_bandwidth}[tier]  # fmt: skip
    return min(link, level)
