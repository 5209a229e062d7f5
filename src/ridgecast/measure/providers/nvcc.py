"""CUDA source to a shared library with nvcc: found, compiled, cached, its resources read.

    built = build(source, name="tiled", arch="sm_90a", flags=("-DTILE=16",))
    library = ctypes.CDLL(str(built.path))        # call the extern "C" functions of the source
    built.resources["tiled"].registers            # as ptxas reports them, per kernel

The cache key covers the source, the name, the architecture, the flags, the include paths and
nvcc's version; it does not cover what included files hold, so whoever includes headers that may
change under the same path puts their version into the source as a comment. `build` may be called
from several threads and processes at once (nvcc runs outside the interpreter: a thread pool
compiles in parallel). Knows no kernel and no device.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import MeasurementError, MissingExtraError, SpecError

__all__ = ["NVCC_CURE", "Built", "Resources", "build", "cache_folder", "find_nvcc",
           "nvcc_version", "parse_ptxas", "trimmed"]  # fmt: skip

NVCC_CURE = "install the CUDA toolkit 12 or later and put its bin folder on PATH (or set CUDA_HOME)"
_BASE_FLAGS = ("-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "-Xptxas", "-v")
_ARCH = re.compile(r"sm_(\d{2,3}[af]?)")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes, as ptxas -v reports it; sizes in bytes.

    `shared` is static shared memory only: what a launch asks for dynamically is not in it.
    """

    registers: int  # per thread
    shared: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    stack: int = 0
    barriers: int = 0


@dataclass(frozen=True, slots=True)
class Built:
    """A compiled library: its path, resources by kernel name (as linked), the compiler's log."""

    path: Path
    resources: dict[str, Resources]
    log: str
    cached: bool = False


def find_nvcc() -> Path | None:
    """Path of nvcc: on PATH, under CUDA_HOME or CUDA_PATH, the usual folder, or a pip package.

    The environment is read here because every CUDA build finds its compiler this way.
    """
    found = shutil.which("nvcc")
    if found:
        return Path(found)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    candidates += sorted(packages.glob("*/bin/nvcc"), reverse=True)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def nvcc_version(nvcc: Path) -> str:
    """Release of a compiler, such as "13.0.88"; raises MeasurementError when it cannot run."""
    return _version(str(nvcc), nvcc.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _version(nvcc: str, modified: int) -> str:
    del modified  # part of the key: another compiler under the same path is asked again
    done = _run([nvcc, "--version"], timeout=60)
    match = re.search(r"V(\d+\.\d+\.\d+)", done.stdout)
    if done.returncode != 0 or not match:
        raise MeasurementError(
            f"{nvcc} --version: {trimmed(done.stdout + done.stderr) or 'silent'}"
        )
    return match.group(1)


def cache_folder() -> Path:
    """Folder of compiled kernels, by the XDG base directory specification."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ridgecast" / "cuda"


def build(
    source: str,
    *,
    name: str,
    arch: str,
    flags: Iterable[str] = (),
    include: Iterable[str | Path] = (),
    cache: Path | None = None,
    timeout: float = 300.0,
) -> Built:
    """Compile CUDA C++ `source` into a shared library, or take it from the cache.

    `arch` is real machine code, such as "sm_80" or "sm_90a"; `flags` go to nvcc behind -O3,
    C++17 and -Xptxas -v (a later -O1 or -std wins); `timeout` is in seconds. Raises
    MissingExtraError when there is no nvcc, SpecError for a malformed architecture or name, and
    MeasurementError with the trimmed log when compiling fails, takes too long or the cache folder
    cannot be written.
    """
    match = _ARCH.fullmatch(arch)
    if not match:
        raise SpecError(f"nvcc arch: got {arch!r}, need sm_NN such as sm_80, sm_90 or sm_90a")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise SpecError(f"nvcc name: got {name!r}, need 1 to 64 letters, digits, '_', '-', '.'")
    nvcc = find_nvcc()
    if nvcc is None:
        raise MissingExtraError(f"nvcc was not found, it compiles {name}; {NVCC_CURE}")
    number = match.group(1)
    command = [
        *_BASE_FLAGS,
        "-gencode",
        f"arch=compute_{number},code=sm_{number}",
        *flags,
        *(f"-I{path}" for path in include),
    ]
    key = "\0".join([source, name, nvcc_version(nvcc), *command])
    what = f"{name} ({arch})"
    stem = f"{name}-{arch}-{hashlib.sha256(key.encode()).hexdigest()[:20]}"
    folder = cache or cache_folder()
    library, log_file = folder / f"{stem}.so", folder / f"{stem}.log"
    try:
        if library.exists() and log_file.exists():
            log = log_file.read_text()
            return Built(library, parse_ptxas(log), log, cached=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as scratch:
            log = _compile([str(nvcc), *command], source, Path(scratch), what, timeout)
            # the log first: whoever sees the library finds its log beside it
            os.replace(Path(scratch) / "log", log_file)
            os.replace(Path(scratch) / "out.so", library)
    except OSError as error:
        raise MeasurementError(
            f"nvcc {name}: cannot write to the cache folder {folder} ({error}); free some space or "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return Built(library, parse_ptxas(log), log)


def _compile(command: list[str], source: str, scratch: Path, what: str, timeout: float) -> str:
    """Run nvcc in a scratch folder, leave out.so and log there, return the log."""
    (scratch / "kernel.cu").write_text(source)
    command = [*command, "-o", str(scratch / "out.so"), str(scratch / "kernel.cu")]
    try:
        done = _run(command, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"nvcc {what}: not compiled within {timeout:g} s") from None
    # ptxas reports on stderr in some releases and on stdout in others
    log = (done.stdout + done.stderr).replace(str(scratch) + os.sep, "")
    if done.returncode != 0:
        raise MeasurementError(
            f"nvcc {what} failed with exit code {done.returncode}: {trimmed(log) or 'no output'}"
        )
    (scratch / "log").write_text(log)
    return log


def _run(command: list[str], *, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def trimmed(log: str, lines: int = 12, columns: int = 200) -> str:
    """Lines of a compiler's log that say what is wrong, else its first lines.

    Folders are left out of paths and long lines are cut.
    """
    plain = re.sub(r"(?<![\w.:])/(?:[^\s/:=<>]+/)+", "", log)
    text = [line.strip()[:columns] for line in plain.splitlines() if line.strip()]
    wrong = [line for line in text if re.search(r"\b(error|fatal|undefined)\b", line, re.I)]
    kept = wrong or text
    more = [f"({len(kept) - lines} more lines)"] if len(kept) > lines else []
    return "\n".join([*kept[:lines], *more])


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


def parse_ptxas(log: str) -> dict[str, Resources]:
    """Resources by kernel from the text of -Xptxas -v; kernels are named as linked.

    >>> parse_ptxas('''ptxas info    : Compiling entry function 'f' for 'sm_90'
    ... ptxas info    : Function properties for f
    ...     0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
    ... ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem''')["f"].shared
    2048
    """
    found: dict[str, Resources] = {}
    entry, properties_of = "", ""
    frame = (0, 0, 0)
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry, frame = match.group(1), (0, 0, 0)
        elif "Function properties for" in line:
            properties_of = line.rsplit(maxsplit=1)[-1]
        elif (match := _STACK.search(line)) and properties_of == entry:
            stack, stores, loads = (int(value) for value in match.groups())
            frame = (stack, stores, loads)
        elif entry and (match := _USED.search(line)):
            stack, stores, loads = frame
            found[entry] = Resources(
                int(match.group(1)), _count(r"(\d+) bytes smem", line), stores, loads, stack,
                _count(r"used (\d+) barriers", line),
            )  # fmt: skip
            entry = ""
    return found


def _count(pattern: str, line: str) -> int:
    match = re.search(pattern, line)
    return int(match.group(1)) if match else 0
