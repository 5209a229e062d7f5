"""One CUDA device as torch sees it: what it is, whether it is free, what its errors mean.

Owns the device's description, the list of other processes that compute on it, the buffer that
flushes its L2 and the translation of driver errors. Never changes a setting of the device. Torch
and pynvml are imported on first use.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import MeasurementError, MissingExtraError, RidgecastError
from ..base import DeviceInfo, Probe

__all__ = ["TORCH_CURE", "TorchGpu", "catalogue_name"]

TORCH_CURE = "pip install torch"
_FLUSH_FACTOR = 2  # the flush buffer over the last-level cache
_LEAST_FLUSH = 32 << 20  # bytes, where the size of the cache is not known
_SLEEP_HZ = 2e9  # cycles a second: at lower clocks the device sleeps longer than asked, never less


def catalogue_name(name: str) -> str:
    """Our name of a device from the driver's ("NVIDIA H200" -> h200_sxm), "" when there is none.

    >>> catalogue_name("NVIDIA H100 80GB HBM3"), catalogue_name("NVIDIA H200")
    ('h100_sxm', 'h200_sxm')
    """
    from ...hardware import get

    try:
        return get(name).name
    except RidgecastError:
        return ""


class TorchGpu:
    """A CUDA device under torch; building one touches nothing, `probe` does.

    `allow_shared` lets points run while other processes compute on the device; their number is
    then a fact of each row (`other_processes`). Operands that were made stay in `pool` (owned by
    torch_operands), so that the configurations of one shape do not draw them anew.
    """

    def __init__(self, index: int = 0, *, allow_shared: bool = False) -> None:
        self.index = index
        self.allow_shared = allow_shared
        self.pool: dict[tuple[Any, ...], Any] = {}
        self._info: DeviceInfo | None = None
        self._own_pids = {os.getpid()}
        self._nvml: Any = None
        self._nvml_reason = "not asked yet"
        self._flush: Any = None
        self._lock = threading.Lock()

    @property
    def torch(self) -> Any:
        """The torch module; raises MissingExtraError with the line that installs it."""
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtraError(
                f"torch is not installed ({error}); it drives the CUDA device: {TORCH_CURE}"
            ) from error
        return torch

    @property
    def device(self) -> str:
        """Torch's name of the device."""
        return f"cuda:{self.index}"

    @property
    def info(self) -> DeviceInfo:
        """What the device is; raises MeasurementError when there is none."""
        if self._info is None:
            with self._lock, self.checked("opening the device"):
                self._info = self._describe()
        return self._info

    @property
    def l2_bytes(self) -> int:
        """Size of the last-level cache in bytes, 0 when the driver does not say."""
        return int(self.info.facts["l2_bytes"])

    def probe(self) -> Probe:
        """Whether the device answers now: an element is written and read back."""
        try:
            info = self.info
            with self.checked("a first element"):
                torch = self.torch
                if int(torch.ones(1, device=self.device, dtype=torch.int32).item()) != 1:
                    return Probe(False, f"{self.device} returned a wrong value", "replace it", info)
        except MissingExtraError as error:
            return Probe(False, str(error), TORCH_CURE)
        except MeasurementError as error:
            return Probe(False, str(error), "run nvidia-smi, then start a new process")
        return Probe(True, device=info)

    def _describe(self) -> DeviceInfo:
        torch = self.torch
        if not torch.cuda.is_available() or self.index >= torch.cuda.device_count():
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise MeasurementError(
                f"device {self.index} was asked, torch {torch.__version__} sees {count} CUDA "
                "devices; check nvidia-smi and that torch was built for CUDA"
            )
        before = None if torch.cuda.is_initialized() else self._open_nvml("")
        properties = torch.cuda.get_device_properties(self.index)
        uuid = str(getattr(properties, "uuid", "") or "")
        if self.index:  # libraries and compilers launch on the process's current device
            torch.cuda.set_device(self.index)
        torch.zeros(1, device=self.device)
        pids = self._open_nvml(uuid)
        # in a container NVML counts other process numbers than we do: ours is the one that came
        if before is not None:
            self._own_pids |= pids - before
        elif len(pids) == 1:
            self._own_pids |= pids
        cuda, driver = torch.version.cuda or "", ""
        if self._nvml is not None:
            driver = _text(self._nvml[0].nvmlSystemGetDriverVersion())
        return DeviceInfo(
            name=properties.name,
            kind="gpu",
            hardware=catalogue_name(properties.name),
            uuid=f"GPU-{uuid}" if uuid and not uuid.startswith("GPU-") else uuid,
            memory=int(properties.total_memory),
            facts={
                "driver": driver,
                "torch": str(torch.__version__),
                "cuda": cuda,
                "sm_count": int(properties.multi_processor_count),
                "l2_bytes": int(getattr(properties, "L2_cache_size", 0)),
                "compute_capability": f"{properties.major}.{properties.minor}",
            },
        )

    def _open_nvml(self, uuid: str) -> set[int]:
        """Open NVML on the device of a UUID; numbers of its processes ("": of all devices)."""
        try:
            import pynvml  # pyright: ignore[reportMissingImports]

            pynvml.nvmlInit()
            if not uuid:
                count = pynvml.nvmlDeviceGetCount()
                handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
                return {pid for handle in handles for pid in _pids(pynvml, handle)}
            name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
            self._nvml, self._nvml_reason = (pynvml, handle), ""
            return _pids(pynvml, handle)
        except ImportError:
            self._nvml_reason = "nvidia-ml-py is not installed"
        except Exception as error:  # NVML's own; without it other processes are not seen
            self._nvml_reason = f"NVML: {error}"
        return set()

    def other_processes(self) -> tuple[int | None, str]:
        """Count other processes that compute on the device; None and the reason when not known."""
        _ = self.info
        if self._nvml is None:
            return None, self._nvml_reason
        try:
            return len(_pids(*self._nvml) - self._own_pids), ""
        except Exception as error:  # NVML's own
            return None, f"NVML: {error}"

    def refusal(self) -> str:
        """Why nothing may be measured now, or ""."""
        try:
            others, _ = self.other_processes()
        except RidgecastError as error:
            return str(error)
        if others and not self.allow_shared:
            return (
                f"{others} other process(es) compute on {self.info.name}; wait until nvidia-smi "
                "lists none, or allow a shared device"
            )
        return ""

    def check_alone(self) -> None:
        """Raise MeasurementError when another process computes on the device and none may."""
        reason = self.refusal()
        if reason:
            raise MeasurementError(reason)

    def facts(self) -> dict[str, Any]:
        """Columns of every row: what ran, on what, with whom."""
        others, reason = self.other_processes()
        shared = {"other_processes_reason": reason} if others is None else {}
        return {
            "device": self.info.name,
            "hardware": self.info.hardware,
            "device_uuid": self.info.uuid,
            **{name: self.info.facts[name] for name in ("driver", "torch", "cuda")},
            "other_processes": math.nan if others is None else others,
            **shared,
        }

    def flush(self) -> None:
        """Queue a write of twice the last-level cache, so that nothing of a run stays in it."""
        if self._flush is None:
            size = max(_FLUSH_FACTOR * self.l2_bytes, _LEAST_FLUSH)
            self._flush = self.torch.empty(size, dtype=self.torch.uint8, device=self.device)
        self._flush.zero_()

    def sleep(self, seconds: float) -> None:
        """Queue an idle spin of at least `seconds`, behind which launches pile up."""
        self.torch.cuda._sleep(int(seconds * _SLEEP_HZ))

    def synchronize(self) -> None:
        """Wait until the device is idle."""
        with self.checked("waiting for the device"):
            self.torch.cuda.synchronize(self.index)

    @contextmanager
    def checked(self, what: str) -> Iterator[None]:
        """Turn errors of torch and the driver into MeasurementError with a reason.

        Out of memory gives cached memory back. An error that ended the CUDA context (an illegal
        address) stays: every later call fails, and so does `probe`, which ends a sweep.
        """
        try:
            yield
        except RidgecastError:
            raise
        except (RuntimeError, MemoryError) as error:
            raise MeasurementError(f"{what}: {self._said(error)}") from error

    def _said(self, error: Exception) -> str:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
            self.pool.clear()
            try:
                self.torch.cuda.empty_cache()
            except (RuntimeError, RidgecastError):
                pass  # the context is gone; probe will say so
            return f"out of memory on the device ({first[:200]})"
        return first[:300]


def _pids(library: Any, handle: Any) -> set[int]:
    return {int(p.pid) for p in library.nvmlDeviceGetComputeRunningProcesses(handle)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
