"""What this machine has, lacks and can measure, as plain data."""

from __future__ import annotations

import platform
import sys
import threading
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
    "nvidia-ml-py": ("default: NVIDIA GPUs", "pip install ridgecast"),
    "numba": ("optional: fast tables, kernels on the CPU", "pip install 'ridgecast[fast]'"),
    "scikit-learn": ("optional: study", "pip install 'ridgecast[study]'"),
    "matplotlib": ("optional: study", "pip install 'ridgecast[study]'"),
    "pyopencl": ("optional: OpenCL kernels", "pip install 'ridgecast[opencl]'"),
    "torch": ("optional: CUDA devices", "pip install 'ridgecast[torch]'"),
    "triton": ("optional: Triton kernels", "pip install 'ridgecast[triton]'"),
    "aiconfigurator-core": ("optional: measured tables", "pip install 'ridgecast[silicon]'"),
    "fsspec": ("optional: tables from URLs", "pip install fsspec"),
    "huggingface-hub": ("optional: models by id", "pip install 'ridgecast[hf]'"),
    "onnx": ("optional: models from ONNX", "pip install 'ridgecast[onnx]'"),
    "ray": ("optional: searches on a cluster", "pip install 'ridgecast[ray]'"),
}


def examine(
    data: Path | None = None, *, out: Path | None = None, timeout: float = 3.0
) -> dict[str, Any]:
    """Describe the interpreter, the packages, the GPUs, what can be measured, the data folder.

    `packages` has a row per dependency, `gpus` one per visible NVIDIA GPU (or `gpus_reason` says
    why none), `providers` and `meters` one for each, tried for real within `timeout` [s],
    `machine` the facts of the host, `advice` a line per missing piece. `out` is where results
    would go. Never raises for something missing.
    """
    from ..measure.doctor import examine as examine_measuring

    packages = [_package(name) for name in _PACKAGES]
    gpus, reason = _gpus_within(timeout)
    measuring = examine_measuring(out=out, timeout=timeout)
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
        "providers": measuring["providers"],
        "meters": measuring["meters"],
        "machine": measuring["machine"],
        "data": folder,
        "advice": advice + measuring["advice"],
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


def _gpus_within(timeout: float) -> tuple[list[dict[str, Any]], str | None]:
    """GPUs, unless the driver hangs: then none, and the reason."""
    answer: list[tuple[list[dict[str, Any]], str | None]] = []
    thread = threading.Thread(target=lambda: answer.append(_gpus()), daemon=True)
    thread.start()
    thread.join(timeout)
    return answer[0] if answer else ([], f"the NVIDIA driver gave no answer within {timeout:g} s")


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
