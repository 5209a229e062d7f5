"""Energy, power, clocks, temperature and throttle reasons of one NVIDIA GPU, through NVML.

Reads only: it never changes a clock, a power limit or a mode, and never resets anything. Vendor
units (mJ, mW, MHz) become SI on the line that calls the vendor. Needs nvidia-ml-py, imported on
first use.

The energy counter moves in steps (20 to 100 ms on many boards), so it is sampled through a window
together with the instant power; nvmlDeviceGetPowerUsage is a mean over a second on most boards
since Ampere and only stands in, flagged, where there is no instant reading. Source: NVML API
reference, nvmlDeviceGetTotalEnergyConsumption, nvmlDeviceGetPowerUsage, NVML_FI_DEV_POWER_INSTANT.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MeasurementError, MissingExtraError
from ..base import DeviceInfo, Probe, Reading
from .sampling import Sampler, mean_over

__all__ = ["ERRORS", "THROTTLE", "Nvml"]

_INSTALL = "pip install nvidia-ml-py"

# return code -> (plain reason, cure); nvmlReturn_t of the NVML API reference
ERRORS: dict[int, tuple[str, str]] = {
    1: ("NVML was not initialised", ""),
    2: ("NVML does not know this device index or argument", "nvidia-smi -L lists the devices"),
    3: ("this board does not support the query", ""),
    4: ("no permission to ask the driver", "run as a user who may open /dev/nvidia*"),
    6: ("no such device", "nvidia-smi -L lists the devices"),
    8: ("the board's external power cable is not attached", "attach it"),
    9: ("the NVIDIA driver is not loaded", "sudo modprobe nvidia"),
    10: ("the driver did not answer in time", "nvidia-smi shows whether it still answers"),
    12: ("libnvidia-ml.so.1 was not found: there is no NVIDIA driver here",
         "install the driver; in a container: --gpus all (NVIDIA container toolkit)"),
    13: ("the driver is too old for this query", "install a newer driver"),
    15: ("the GPU is lost: it fell off the bus", "a reboot; look for Xid in dmesg"),
    16: ("the GPU must be reset before it works again", "ask who runs this machine"),
    17: ("the operating system blocked the request", "run outside the sandbox"),
    18: ("driver and NVML library differ in version", "reboot, or load the driver that fits"),
    999: ("the driver gave an unknown error", "nvidia-smi shows whether it still answers"),
}  # fmt: skip
_LOST = (15, 16)

# bit of nvmlDeviceGetCurrentClocksEventReasons -> our name; bit 0 (nothing to do) is no reason
THROTTLE: dict[int, str] = {
    0x2: "clock_setting", 0x4: "power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost",
    0x20: "thermal", 0x40: "thermal_hw", 0x80: "power_brake", 0x100: "display_clock",
    0x200: "board_limit", 0x400: "reliability",
}  # fmt: skip
_AS_FOUND = frozenset({"clock_setting", "display_clock"})  # how somebody set the device up

_POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT, mW
_TRY = "; try: "  # parts reason and cure in a message
_POLL_SHARE = 0.01  # share of the time that asking for throttle reasons may take
_PROCESS_AGE = 1.0  # s that a list of processes is kept at least: asking is slow


class Nvml:
    """Meter of one NVIDIA GPU, by NVML `index` or by `uuid` (which wins).

    `period` [s] is the pace of readings inside a window. Unless `shared`, another compute process
    on the GPU counts as a reason to be throttled ("other_process"), so that samples beside it are
    dropped; an energy window only records it in any case.
    """

    name = "nvml"

    def __init__(
        self, *, index: int = 0, uuid: str = "", period: float = 0.02, shared: bool = False
    ) -> None:
        self._index, self._uuid, self._period, self._shared = index, uuid, period, shared
        self._nvml: Any = None
        self._handle: Any = None
        self._sensor = ""  # "instant" or "averaged"
        self._counts = True  # whether the energy counter is there
        self._seen: set[str] = set()
        self._sampler: Sampler | None = None
        self._polled, self._poll_cost = -np.inf, 0.0
        self._poll: tuple[str, ...] = ()
        self._processes_until, self._others = -np.inf, 0

    # ------------------------------------------------------------------------------ the protocol

    def probe(self) -> Probe:
        """Whether the board answers with a power or an energy; the device as NVML names it."""
        try:
            self._open()
            device = self._device()
            self._read(True)
        except MissingExtraError as error:
            return Probe(False, str(error), _INSTALL)
        except MeasurementError as error:
            return Probe(False, str(error).partition(_TRY)[0], _cure(error))
        others = self._other_processes()
        reason = f"{others} other process{'es' * (others > 1)} on the GPU" if others else ""
        return Probe(True, reason=reason, device=device)

    def start(self) -> None:
        """Begin a window. Raises MeasurementError when one is open or the board does not answer."""
        if self._sampler is not None:
            raise MeasurementError("nvml: a window is open already; stop() ends it")
        self._open()
        self._seen = set()
        sampler = Sampler(self._read, period=self._period)
        sampler.begin()
        self._sampler = sampler

    def stop(self) -> Reading:
        """End the window. Raises MeasurementError when none is open or the GPU was lost in it."""
        if self._sampler is None:
            raise MeasurementError("nvml: no window is open; start() begins one")
        sampler, self._sampler = self._sampler, None
        duration, samples = sampler.end()
        power = mean_over(samples["time"], samples["power"])
        counted = samples["energy"][-1] - samples["energy"][0]
        source = "counter" if counted > 0 else self._sensor
        energy = counted if counted > 0 else power * duration
        moved = bool(np.isfinite(energy))
        facts = {
            **self._settings(),
            "energy_source": source if moved else "",
            "power_sensor": self._sensor,
            "other_processes": self._other_processes(fresh=True),
        }
        return Reading(
            duration=duration,
            energy=float(energy) if moved else np.nan,
            mean_power=float(energy) / duration if moved else np.nan,
            reason="" if moved else "neither the energy counter nor a power sensor answered",
            throttle=tuple(sorted(self._seen)),
            samples=samples,
            facts=facts,
        )

    def throttled(self) -> tuple[str, ...]:
        """Reasons right now, not older than 10 ms, or than 100 times what asking costs."""
        now = time.perf_counter()
        if now - self._polled < max(0.01, self._poll_cost / _POLL_SHARE):
            return self._poll
        self._open()
        begun = time.perf_counter()
        reasons = self._reasons() - _AS_FOUND
        self._polled = time.perf_counter()
        self._poll_cost = self._polled - begun
        if not self._shared and self._other_processes():
            reasons = reasons | {"other_process"}
        self._poll = tuple(sorted(reasons))
        return self._poll

    def close(self) -> None:
        """Give the library back. May be called twice."""
        if self._nvml is not None:
            nvml, self._nvml, self._handle = self._nvml, None, None
            self._ask(nvml.nvmlShutdown, nvml=nvml)

    # --------------------------------------------------------------------------------- the vendor

    def _open(self) -> None:
        """Load the library and find the device, once."""
        if self._handle is not None:
            return
        try:
            import pynvml  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtraError(f"nvml needs nvidia-ml-py: {_INSTALL}") from error
        self._ask(pynvml.nvmlInit, nvml=pynvml)
        if self._uuid:
            uuid = self._uuid if self._uuid.startswith(("GPU-", "MIG-")) else f"GPU-{self._uuid}"
            handle = self._ask(pynvml.nvmlDeviceGetHandleByUUID, uuid, nvml=pynvml)
        else:
            handle = self._ask(pynvml.nvmlDeviceGetHandleByIndex, self._index, nvml=pynvml)
        self._nvml, self._handle = pynvml, handle
        self._counts = self._try(pynvml.nvmlDeviceGetTotalEnergyConsumption) is not None
        self._sensor = "instant" if self._instant() is not None else "averaged"

    def _ask(self, call: Callable[..., Any], *arguments: Any, nvml: Any = None) -> Any:
        """Call NVML; its errors become MeasurementError with the reason and the cure."""
        library = nvml or self._nvml
        try:
            return call(*arguments)
        except library.NVMLError as error:
            code = int(getattr(error, "value", 999))
            reason, cure = ERRORS.get(code, (f"NVML error {code}: {error}", ""))
            raise MeasurementError(f"nvml: {reason}{_TRY + cure if cure else ''}") from error

    def _try(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call NVML on the device; None where the board lacks the query. Raises when it is lost."""
        try:
            return self._ask(call, self._handle, *arguments)
        except MeasurementError as error:
            if _code(error) in _LOST:
                raise
            return None

    def _read(self, slow: bool) -> dict[str, float]:
        """One reading: energy [J] and power [W]; with `slow` also clocks [Hz] and temperature."""
        nvml, out = self._nvml, dict[str, float]()
        if self._counts:
            millijoules = self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)
            out["energy"] = 1e-3 * millijoules
        power = self._instant() if self._sensor == "instant" else self._averaged()
        out["power"] = np.nan if power is None else power
        if slow:
            for name, kind in (("clock", 1), ("memory_clock", 2)):  # NVML_CLOCK_SM, _MEM
                megahertz = self._try(nvml.nvmlDeviceGetClockInfo, kind)
                out[name] = np.nan if megahertz is None else 1e6 * megahertz
            degrees = self._try(nvml.nvmlDeviceGetTemperature, 0)  # NVML_TEMPERATURE_GPU
            out["temperature"] = np.nan if degrees is None else float(degrees)
            self._seen |= self._reasons()
        return out

    def _instant(self) -> float | None:
        """Instant board power [W], None where the board has no such reading."""
        values = self._try(self._nvml.nvmlDeviceGetFieldValues, [_POWER_INSTANT])
        if values is None or values[0].nvmlReturn != 0:
            return None
        return 1e-3 * values[0].value.uiVal  # mW

    def _averaged(self) -> float | None:
        milliwatts = self._try(self._nvml.nvmlDeviceGetPowerUsage)
        return None if milliwatts is None else 1e-3 * milliwatts

    def _reasons(self) -> set[str]:
        nvml = self._nvml
        # drivers and bindings before 2023 know the call by its older name
        call = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        bits = self._try(call or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        if bits is None and call is not None:
            bits = self._try(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return {name for bit, name in THROTTLE.items() if int(bits or 0) & bit}

    def _settings(self) -> dict[str, Any]:
        limit = self._try(self._nvml.nvmlDeviceGetEnforcedPowerLimit)
        return {"power_limit_w": np.nan if limit is None else 1e-3 * limit}  # mW

    def _device(self) -> DeviceInfo:
        nvml = self._nvml
        memory = self._try(nvml.nvmlDeviceGetMemoryInfo)
        facts: dict[str, Any] = {**self._settings(), "power_sensor": self._sensor,
                                 "energy_counter": self._counts}  # fmt: skip
        facts["driver"] = _text(self._ask(nvml.nvmlSystemGetDriverVersion))
        highest = self._try(nvml.nvmlDeviceGetMaxClockInfo, 1)  # NVML_CLOCK_SM, MHz
        facts["clock_limit_hz"] = np.nan if highest is None else 1e6 * highest
        return DeviceInfo(
            name=_text(self._try(nvml.nvmlDeviceGetName)),
            kind="gpu",
            uuid=_text(self._try(nvml.nvmlDeviceGetUUID)),
            memory=0 if memory is None else int(memory.total),
            facts=facts,
        )

    def _other_processes(self, *, fresh: bool = False) -> int:
        """How many compute processes on the GPU are not ours, as far as one can tell."""
        now = time.perf_counter()
        if fresh or now > self._processes_until:
            listed = self._try(self._nvml.nvmlDeviceGetComputeRunningProcesses) or []
            self._others = _count_others([int(process.pid) for process in listed])
            done = time.perf_counter()
            self._processes_until = done + max(_PROCESS_AGE, (done - now) / _POLL_SHARE)
        return self._others


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def _code(error: MeasurementError) -> int:
    return int(getattr(error.__cause__, "value", 999))


def _cure(error: MeasurementError) -> str:
    return ERRORS.get(_code(error), ("", ""))[1]


def _count_others(pids: list[int]) -> int:
    """Count the processes that are neither we nor our ancestors and descendants.

    In a container the driver may name processes by numbers that mean nothing here: then one of
    them is taken to be ours.
    """
    others = [pid for pid in pids if not _related(pid)]
    if len(others) < len(pids):
        return len(others)
    hidden = sum(not Path(f"/proc/{pid}").exists() for pid in others)
    return len(others) - min(hidden, 1)


def _related(pid: int) -> bool:
    own = os.getpid()
    return own in (pid, *_ancestors(pid)) or pid in _ancestors(own)


def _ancestors(pid: int) -> list[int]:
    """Parents of a process up to the first one, () where the system does not say."""
    found: list[int] = []
    while pid > 1 and len(found) < 64:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        pid = int(text.rpartition(")")[2].split()[1])  # the name may hold blanks and brackets
        found.append(pid)
    return found
