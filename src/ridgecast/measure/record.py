"""The environment of a run: what must agree between results, and what is good to know later.

Owns the record (environment-<id>.json beside the shards) and its id. The id is a hash of what must
agree for results to be comparable: device, driver, libraries, Python. The same machine resumes
into the same id; a new driver gets a new one.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import MeasurementError
from .base import DeviceInfo, Meter, Provider
from .protocol import Protocol
from .shards import plain_row, write_json

__all__ = ["Environment", "admit", "command_line", "cpu_model", "environment_of", "git_hash",
           "gpu_processes"]  # fmt: skip

# provider -> the distributions whose version moves its results; a provider may say it itself with
# an attribute `libraries`
_LIBRARIES: dict[str, tuple[str, ...]] = {
    "blas": ("numpy",),
    "numba": ("numba", "llvmlite"),
    "opencl": ("pyopencl",),
    "cuda": ("cuda-core",),
    "torch": ("torch",),
    "triton": ("triton", "torch"),
    "cutlass": ("nvidia-cutlass", "torch"),
}
_NOTED = ("numpy", "numba", "pyopencl", "torch", "triton", "cuda-core", "nvidia-cutlass",
          "nvidia-ml-py", "duckdb", "pyarrow")  # fmt: skip
# facts of a device that name software or a setting, as providers spell them
_MUST_AGREE = ("driver", "driver_version", "cuda", "cuda_version", "nvcc", "runtime", "platform",
               "platform_version", "compiler", "blas", "threads")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Environment:
    """Id of an environment and its full record, ready for JSON."""

    id: str
    record: Mapping[str, Any]

    def write(self, folder: Path) -> Path:
        """Write environment-<id>.json unless it is there; return its path."""
        path = folder / f"environment-{self.id}.json"
        if not path.exists():
            write_json(path, self.record)
        return path


def environment_of(
    provider: Provider,
    device: DeviceInfo,
    *,
    protocol: Protocol,
    seed: int = 0,
    command: str = "",
    meter: Meter | None = None,
    meter_reason: str = "",
) -> Environment:
    """Record the environment of a provider on its device, now. Missing facts are null.

    `meter_reason` says why there is no meter.
    """
    names = getattr(provider, "libraries", _LIBRARIES.get(provider.name, ()))
    facts = plain_row(device.facts)
    agree: dict[str, Any] = {
        "device": {"name": device.name, "kind": device.kind, "uuid": device.uuid},
        "provider": provider.name,
        "facts": {key: facts[key] for key in _MUST_AGREE if key in facts},
        "libraries": {name: _version(name) for name in ("ridgecast", *names)},
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    digest = hashlib.sha256(json.dumps(agree, sort_keys=True).encode()).hexdigest()[:12]
    record = {
        "schema_version": 1,
        "environment": digest,
        "must_agree": agree,
        "device": {"hardware": device.hardware, "memory_bytes": device.memory, "facts": facts},
        "libraries": {name: _version(name) for name in _NOTED},
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpu_processes": gpu_processes(device.uuid) if device.kind == "gpu" else None,
        "meter": meter.name if meter else None,
        "meter_reason": meter_reason,
        "protocol": {k: v for k, v in asdict(protocol).items() if k != "energy"},
        "energy_protocol": plain_row(asdict(protocol.energy)),
        "command": command,
        "seed": seed,
        "ridgecast": _version("ridgecast"),
        "git_hash": git_hash(),
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return Environment(digest, record)


def admit(
    folder: Path, here: Mapping[str, Any], *, mix: bool = False, apart: Collection[str] = ()
) -> None:
    """Raise MeasurementError when a folder holds results of another environment than a record's.

    With `mix` another device or driver is let in; rows stay apart by their environment column.
    What `apart` names ("device.uuid") may differ.
    """
    if mix:
        return
    for path in sorted(folder.glob("environment-*.json")):
        try:
            there = json.loads(path.read_text("utf-8"))["must_agree"]
        except (ValueError, KeyError, TypeError):
            raise MeasurementError(f"{path}: is no environment record; move it away") from None
        found = _differences(there, here["must_agree"])
        differences = [line for line in found if line.partition(":")[0] not in apart]
        if differences:
            raise MeasurementError(
                f"{folder} holds results of another environment: {'; '.join(differences)}. "
                "Results of two environments are not comparable: give another --out (or --mix to "
                "keep both in one folder, apart by their environment column)"
            )


def _differences(there: Any, here: Any, path: str = "") -> list[str]:
    """Differing leaves of two records as "path: a there, b here"."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = sorted({*there, *here})
        parts = [_differences(there.get(k), here.get(k), f"{path}.{k}".strip(".")) for k in keys]
        return [line for part in parts for line in part]
    return [] if there == here else [f"{path}: {there} there, {here} here"]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text("utf-8").strip().splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def cpu_model() -> str | None:
    """Name of this machine's processor, None where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or None


def git_hash() -> str | None:
    """Commit of the checkout that this code runs from, "+" appended when it was changed.

    None for an installed package or without git.
    """
    here = Path(__file__).resolve()
    root = here.parents[3]
    if not (root / ".git").exists() or here.parents[2].name != "src":
        return None
    found = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src")
    return f"{found}{'+' if changed else ''}" if found else None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def gpu_processes(uuid: str) -> list[dict[str, Any]] | None:
    """Other processes on an NVIDIA GPU: pid and memory_bytes; None where nobody can tell."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
    except Exception:  # not installed, no driver: NVML's own error class is not at hand either
        return None
    try:
        find = pynvml.nvmlDeviceGetHandleByUUID if uuid else pynvml.nvmlDeviceGetHandleByIndex
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(find(uuid or 0))
        return [
            {"pid": p.pid, "memory_bytes": p.usedGpuMemory} for p in running if p.pid != os.getpid()
        ]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def command_line() -> str:
    """Return the command that started this process, without the path of its program."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else ""
