"""What this machine has and lacks, as plain data."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["examine"]

# package -> (what it is for, the line that installs it)
_PACKAGES = {
    "numpy": ("default", "pip install ridgecast"),
    "duckdb": ("default: files", "pip install ridgecast"),
    "lightgbm": ("default: learned models", "pip install ridgecast"),
    "pydantic": ("default: files that people write", "pip install ridgecast"),
    "typer": ("default: command line", "pip install ridgecast"),
    "rich": ("default: command line", "pip install ridgecast"),
    "nvidia-ml-py": ("optional: NVIDIA GPUs", "pip install nvidia-ml-py"),
    "aiconfigurator-core": ("optional: measured tables", "pip install 'ridgecast[silicon]'"),
    "fsspec": ("optional: tables from URLs", "pip install fsspec"),
}


def examine(data: Path | None = None) -> dict[str, Any]:
    """Describe the interpreter, the packages, the GPUs and the data folder.

    `packages` has a row per dependency, `gpus` one per visible NVIDIA GPU (or `gpus_reason` says
    why none), `advice` a line per missing piece. Never raises for something missing.
    """
    packages = [_package(name) for name in _PACKAGES]
    gpus, reason = _gpus()
    advice = [
        f"{row['package']} ({row['use']}) is missing: {row['install']}"
        for row in packages
        if row["version"] is None
    ]
    folder = _data(data)
    if not folder["found"]:
        advice.append(f"measured tables: {folder['note']}")
    return {
        "version": _version("ridgecast"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": packages,
        "gpus": gpus,
        "gpus_reason": reason,
        "data": folder,
        "advice": advice,
        "ok": all(r["version"] for r in packages if str(r["use"]).startswith("default")),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _package(name: str) -> dict[str, str | None]:
    use, install = _PACKAGES[name]
    return {"package": name, "version": _version(name), "use": use, "install": install}


def _gpus() -> tuple[list[dict[str, Any]], str | None]:
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return [], "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"the NVIDIA driver does not answer: {error}"
    try:
        return [_gpu(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())], None
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)  # B
    try:
        limit: float | None = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000.0  # mW -> W
    except nvml.NVMLError:
        limit = None
    return {
        "index": index,
        "gpu": name.decode() if isinstance(name, bytes) else str(name),
        "memory_bytes": int(memory.total),
        "power_limit_w": limit,
        "driver": str(nvml.nvmlSystemGetDriverVersion()),
    }


def _data(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        note = "no folder given (--data DIR); predictions do not need one, training does"
        return {"path": None, "found": False, "tables": 0, "note": note}
    if not folder.is_dir():
        return {"path": str(folder), "found": False, "tables": 0, "note": f"no folder {folder}"}
    tables = sum(1 for path in folder.rglob("*") if path.suffix in (".parquet", ".csv"))
    return {"path": str(folder), "found": True, "tables": tables, "note": ""}
