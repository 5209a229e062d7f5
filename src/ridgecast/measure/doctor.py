"""What this machine can measure, as plain data: providers, meters, and what disturbs or forbids.

Every provider is tried for real in a process of its own, so that a driver that hangs, crashes or
takes its time costs one row and `timeout` at most. Owns the questions; each probe owns its answer.
Changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .meters import METERS, get_meter
from .providers import PROVIDERS, get_provider
from .record import cpu_model

__all__ = ["examine", "machine", "probe_row"]

_MARK = "ridgecast-probe "  # drivers may write to stdout before us
_CODE = (
    "import sys; from ridgecast.measure.doctor import probe_row, _say; "
    "_say(probe_row(sys.argv[1], sys.argv[2]))"
)
_IN_PROCESS = ("clock", "rapl")  # read files only: cannot hang
_FROM_FILES = ("replay",)  # need a recording, not a machine
_BUSY = 0.3  # load per core from which timings scatter (assumed)


def examine(
    *,
    out: Path | None = None,
    timeout: float = 3.0,
    providers: Mapping[str, str] = PROVIDERS,
    meters: Mapping[str, str] = METERS,
) -> dict[str, Any]:
    """Describe what can be measured here: `providers`, `meters`, `machine`, `advice`.

    A row of the first two has name, ok (None: no answer within `timeout` [s]), reason, cure,
    device. `out` is the folder that results would go to. Never raises for something missing.
    """
    names = [name for name in providers if name not in _FROM_FILES]
    outside = [name for name in meters if name not in (*_IN_PROCESS, *_FROM_FILES)]
    asked = [("provider", name) for name in names] + [("meter", name) for name in outside]
    begun = [_start(kind, name) for kind, name in asked]
    inside = [probe_row("meter", name) for name in meters if name in _IN_PROCESS]
    facts = machine(out)
    deadline = time.monotonic() + timeout
    rows = [
        _finish(process, name, deadline, timeout)
        for process, (_, name) in zip(begun, asked, strict=True)
    ]
    found = {
        "providers": rows[: len(names)],
        "meters": sorted(inside + rows[len(names) :], key=lambda r: list(meters).index(r["name"])),
        "machine": facts,
    }
    return found | {"advice": _advice(found)}


def probe_row(kind: str, name: str) -> dict[str, Any]:
    """Probe one provider or meter; whatever goes wrong is the row's reason."""
    row: dict[str, Any] = {"name": name, "ok": False, "reason": "", "cure": "", "device": None}
    begun = time.perf_counter()
    try:
        probe = (get_provider if kind == "provider" else get_meter)(name).probe()
        device = None if probe.device is None else asdict(probe.device)
        row |= {"ok": probe.ok, "reason": probe.reason, "cure": probe.cure, "device": device}
    except Exception as error:  # a module that is not there, a library that does not load
        row["reason"] = f"{type(error).__name__}: {error}"
    return row | {"probe_s": time.perf_counter() - begun}


def _say(row: Mapping[str, Any]) -> None:
    """Write a row for the process that asked; the last thing that this process does."""
    sys.stdout.write(f"\n{_MARK}{json.dumps(row, default=str)}\n")
    sys.stdout.flush()
    os._exit(0)  # libraries that hang at exit have already answered


def _start(kind: str, name: str) -> subprocess.Popen[str] | OSError:
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _CODE, kind, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,  # so that compilers it started end with it
        )
    except OSError as error:
        return error


def _finish(
    process: subprocess.Popen[str] | OSError, name: str, deadline: float, timeout: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "ok": False, "reason": "", "cure": "", "device": None}
    if isinstance(process, OSError):
        return row | {"reason": f"no process could be started: {process}"}
    try:
        text, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.05))
    except subprocess.TimeoutExpired:
        _end(process)
        return row | {
            "ok": None,
            "reason": f"no answer within {timeout:g} s; the first look may load or compile a lot",
            "cure": "ridgecast doctor --timeout 60",
        }
    for line in reversed(text.splitlines()):
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    return row | {"reason": f"its process died with code {process.returncode} and said nothing"}


def _end(process: subprocess.Popen[str]) -> None:
    """End a probe and everything that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=1.0)


# --------------------------------------------------------------------------------- the machine


def machine(out: Path | None = None) -> dict[str, Any]:
    """Facts about the host that measuring depends on; None where the system does not tell."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    folder = _existing(Path.cwd() if out is None else out)
    return {
        "cpu": cpu_model(),
        "cores": cores,
        "load": load,
        "governor": _governor(),
        "perf_event_paranoid": _number(Path("/proc/sys/kernel/perf_event_paranoid")),
        "nvidia_devices": sorted(str(p) for p in Path("/dev").glob("nvidia[0-9]*")),
        "nvcc": shutil.which("nvcc"),
        "opencl_platforms": _opencl_files(),
        "chromium": shutil.which("chromium") or shutil.which("chromium-browser"),
        "out": str(folder),
        "free_bytes": shutil.disk_usage(folder).free,
        "writable": os.access(folder, os.W_OK),
    }


def _existing(folder: Path) -> Path:
    """Find the folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _governor(root: Path = Path("/sys/devices/system/cpu")) -> str | None:
    """Frequency governors in use, joined; None in a machine that shows none (most virtual ones)."""
    found: set[str] = set()
    for path in root.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        with contextlib.suppress(OSError):
            found.add(path.read_text().strip())
    return ", ".join(sorted(found)) or None


def _opencl_files() -> list[str]:
    """OpenCL platforms that are installed, by the name of their loader file."""
    return sorted(path.stem for path in Path("/etc/OpenCL/vendors").glob("*.icd"))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _advice(found: Mapping[str, Any]) -> list[str]:
    """Return a line per thing that would make more measurable, or measurements better."""
    host, lines = found["machine"], list[str]()
    for kind in ("providers", "meters"):
        for row in found[kind]:
            if not row["ok"]:
                told = not row["cure"] or row["cure"] in row["reason"]
                cure = "" if told else f": {row['cure']}"
                lines.append(f"{kind[:-1]} {row['name']}: {row['reason']}{cure}")
    if host["governor"] not in (None, "performance"):
        lines.append(
            f"CPU governor {host['governor']}: clocks follow the load, so CPU times scatter; "
            "whoever runs this machine can choose performance (ridgecast changes no setting)"
        )
    if host["load"] is not None and host["load"] > _BUSY * (host["cores"] or 1):
        lines.append(
            f"load {host['load']:.1f} on {host['cores']} cores: something else runs here, "
            "and CPU times will scatter"
        )
    if host["chromium"] is None:
        lines.append("no Chromium: tests of the web page are skipped; apt-get install chromium")
    if not host["writable"]:
        lines.append(f"{host['out']} cannot be written to: choose another folder with --out")
    elif host["free_bytes"] < 1e9:
        lines.append(
            f"{host['out']} has {host['free_bytes'] / 1e6:.0f} MB left: a sweep needs 1 GB"
        )
    return lines
