"""Provider "cutlass": CUTLASS products compiled here or found compiled, kernels cutlass_*.

    folder/cutlass-....so     a bundle of instances, as `nvcc.build` leaves it
    folder/cutlass-....json   its symbols, the driver it was built from, versions of what built it

A point runs when a library with its instance lies in one of the `libraries` folders (built earlier,
maybe on another machine with the same CUDA) or when nvcc and the headers are here; else it is
refused with the reason. `build_bundles` compiles many instances in parallel. Configuration columns
are those of `cutlass_driver`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MeasurementError, MissingExtraError, RidgecastError, SpecError
from ..base import Point, Probe, Work
from .cutlass_driver import Instance, bundle_source, complaint, driver_version, instance_of
from .nvcc import build, cache_folder, find_nvcc, nvcc_version
from .torch_device import TorchGpu
from .torch_work import gemm_work, sets_for

__all__ = ["CUTLASS_CURE", "BuildReport", "Cutlass", "build_bundles", "find_headers"]

CUTLASS_CURE = "pip install nvidia-cutlass"
_FLAGS = ("--expt-relaxed-constexpr", "-DNDEBUG")
_BUNDLE = {"sm80": 24, "sm90": 8}  # instances that compile together: reading headers takes longest
_SLOWEST = 1200.0  # s that a bundle may compile
_FACTS = ("registers", "local_bytes", "shared_bytes", "threads", "blocks_per_sm")


def find_headers(include: str | os.PathLike[str] | None = None) -> tuple[Path, str]:
    """CUTLASS's include folder and version: `include`, else the pip package's.

    Raises SpecError when `include` holds no CUTLASS, MissingExtraError when there is none.
    """
    if include is not None:
        folder = Path(include)
        if not (folder / "cutlass" / "version.h").is_file():
            raise SpecError(f"cutlass.include: {folder} holds no cutlass/version.h")
    else:
        found = importlib.util.find_spec("cutlass_library")
        roots = list(found.submodule_search_locations or ()) if found else []
        folder = Path(roots[0], "source", "include") if roots else Path()
        if not roots or not (folder / "cutlass" / "version.h").is_file():
            raise MissingExtraError(f"CUTLASS's headers were not found: {CUTLASS_CURE}")
    text = (folder / "cutlass" / "version.h").read_text(encoding="utf-8")
    parts = [re.search(rf"CUTLASS_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return folder, ".".join(match[1] for match in parts if match)


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `build_bundles` did: instances built and there before, reasons of those that failed."""

    built: int
    present: int
    failed: Mapping[str, str]  # symbol -> reason
    seconds: tuple[float, ...]  # of each bundle compiled


def build_bundles(
    instances: Iterable[Instance],
    *,
    folder: Path,
    capability: str = "9.0",
    include: str | os.PathLike[str] | None = None,
    workers: int = 1,
    deadline: float = np.inf,
) -> BuildReport:
    """Compile the instances that `folder` has no library of, bundle by bundle in `workers` threads.

    A bundle that fails is divided until the instance at fault stands alone. No bundle is begun
    after `deadline` (of time.monotonic). Raises MissingExtraError without headers or nvcc.
    """
    headers, version = find_headers(include)
    index = _index([folder])
    wanted = {each.symbol: each for each in instances}
    missing = [each for symbol, each in wanted.items() if symbol not in index]
    bundles: list[list[Instance]] = []
    for family, size in _BUNDLE.items():
        alike = [each for each in missing if each.family == family]
        bundles += [alike[start : start + size] for start in range(0, len(alike), size)]
    failed: dict[str, str] = {}
    seconds: list[float] = []

    def compile_one(bundle: Sequence[Instance]) -> None:
        if time.monotonic() > deadline:
            failed.update({each.symbol: "not compiled: no time left" for each in bundle})
            return
        begun = time.monotonic()
        try:
            _build_bundle(bundle, folder, capability, headers, version)
            seconds.append(time.monotonic() - begun)
        except MeasurementError as error:
            if len(bundle) == 1:
                failed[bundle[0].symbol] = str(error)
                return
            half = len(bundle) // 2
            compile_one(bundle[:half])
            compile_one(bundle[half:])

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        list(pool.map(compile_one, bundles))
    built = len(missing) - len(failed)
    return BuildReport(built, len(wanted) - len(missing), failed, tuple(seconds))


def _build_bundle(
    bundle: Sequence[Instance], folder: Path, capability: str, headers: Path, version: str
) -> Path:
    """Compile one bundle into `folder` and write its list of symbols beside it."""
    nvcc = find_nvcc()
    begun = time.monotonic()
    built = build(
        bundle_source(bundle, version),
        name=f"cutlass-{bundle[0].family}",
        arch=bundle[0].arch(capability),
        flags=_FLAGS,
        include=(headers,),
        cache=folder,
        timeout=_SLOWEST,
    )
    document = {
        "driver": driver_version(),
        "symbols": [each.symbol for each in bundle],
        "arch": bundle[0].arch(capability),
        "cutlass": version,
        "nvcc": nvcc_version(nvcc) if nvcc else "",
        "compile_s": round(time.monotonic() - begun, 1),
    }
    partial = built.path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
    os.replace(partial, built.path.with_suffix(".json"))
    return built.path


def _index(folders: Sequence[Path]) -> dict[str, tuple[Path, str]]:
    """Library and CUTLASS version of every symbol in the folders, built from these templates."""
    found: dict[str, tuple[Path, str]] = {}
    for folder in reversed(folders):
        for listed in sorted(folder.glob("cutlass-*.json")):
            document = json.loads(listed.read_text(encoding="utf-8"))
            library = listed.with_suffix(".so")
            if document["driver"] == driver_version() and library.is_file():
                entry = (library, str(document["cutlass"]))
                found.update(dict.fromkeys(document["symbols"], entry))
    return found


@dataclass(slots=True)
class _Product:
    """A prepared product on one set of operands; frees itself."""

    library: Any
    symbol: str
    handle: int
    keep: list[Any] = field(default_factory=list[Any])  # what the product points to

    def run(self, stream: int) -> None:
        status = getattr(self.library, f"{self.symbol}_run")(self.handle, stream)
        if status:
            raise RuntimeError(f"{self.symbol}: CUTLASS status {status} at launch")

    def __del__(self) -> None:
        if self.handle:
            getattr(self.library, f"{self.symbol}_free")(self.handle)
            self.handle = 0


class Cutlass:
    """CUTLASS products on one CUDA device.

    `libraries` are folders with compiled bundles; the last one also takes what is compiled here
    (default: the user's cache). `include` is CUTLASS's include folder (default: the pip package's),
    `compile_here` whether a missing instance may be compiled when its point comes, about half a
    minute each. `index` and `allow_shared` as in TorchGpu.
    """

    name = "cutlass"

    def __init__(
        self,
        *,
        index: int = 0,
        libraries: Sequence[str | os.PathLike[str]] = (),
        include: str | os.PathLike[str] | None = None,
        compile_here: bool = True,
        allow_shared: bool = False,
        gpu: TorchGpu | None = None,
    ) -> None:
        self.gpu = gpu or TorchGpu(index, allow_shared=allow_shared)
        self._folders = [Path(folder) for folder in libraries]
        self._include, self._compile_here = include, compile_here
        self._found: dict[str, tuple[Path, str]] | None = None
        self._loaded: dict[Path, ctypes.CDLL] = {}

    @property
    def folder(self) -> Path:
        """Where instances that are compiled here go."""
        return self._folders[-1] if self._folders else cache_folder()

    def probe(self) -> Probe:
        """Whether the device answers and a library, or compiler and headers, are here."""
        if not self._known():
            reason = self._no_compiler()
            if reason:
                return Probe(False, f"no compiled library, and {reason}", CUTLASS_CURE)
        return self.gpu.probe()

    def refusal(self, point: Point) -> str:
        """Why no CUTLASS product runs a point here, or ""."""
        reason = complaint(point)
        if reason:
            return reason
        reason = self.gpu.refusal()
        if reason:
            return reason
        instance = instance_of(point)
        capability = str(self.gpu.info.facts["compute_capability"])
        if instance.family == "sm90" and capability != "9.0":
            return f"cutlass_tensor, inst_m 64 needs compute capability 9.0, got {capability}"
        if instance.symbol in self._known():
            return ""
        self._found = None  # another process or thread may be compiling
        if instance.symbol in self._known():
            return ""
        missing = self._no_compiler()
        return f"no library holds {instance.symbol}, and {missing}" if missing else ""

    def prepare(self, point: Point, rng: np.random.Generator) -> Work:
        """Operands, the instance's library and a prepared product for each buffer set."""
        instance = instance_of(point)
        library, version = self._library(instance)
        sets = sets_for(self.gpu, point, rng)
        c = {"split_k": 1, "swizzle": 1, "stream_k": 0, **point.config}
        shape = (point.m, point.n, point.k, c["split_k"], c["swizzle"], c["stream_k"])
        size = getattr(library, f"{instance.symbol}_workspace")(*shape)
        torch, device = self.gpu.torch, self.gpu.device
        with self.gpu.checked("making the workspace"):
            workspace = torch.zeros(max(size, 1), dtype=torch.uint8, device=device)
        make = getattr(library, f"{instance.symbol}_make")
        products: list[_Product] = []
        for each in sets:
            status = ctypes.c_int(0)
            pointers = (each.operands.a.data_ptr(), each.operands.b.data_ptr(), each.out.data_ptr())
            handle = make(
                *pointers, *shape, workspace.data_ptr(), self._stream(), ctypes.byref(status)
            )
            if not handle:
                raise MeasurementError(
                    f"{instance.symbol}: refused {point.m}x{point.n}x{point.k} with CUTLASS status "
                    f"{status.value}: {_STATUS.get(status.value, 'see cutlass/cutlass.h')}"
                )
            products.append(_Product(library, instance.symbol, handle, [each, workspace]))

        def launch(index: int) -> None:
            products[index].run(self._stream())

        facts = {"kernel_source": instance.symbol, "cutlass": version, "workspace_bytes": size}
        facts |= self._facts(library, instance)
        return gemm_work(self.gpu, point, launch, sets, rng=rng, facts=facts)

    def _stream(self) -> int:
        return int(self.gpu.torch.cuda.current_stream(self.gpu.index).cuda_stream)

    def _known(self) -> dict[str, tuple[Path, str]]:
        if self._found is None:
            self._found = _index(list(dict.fromkeys([*self._folders, self.folder])))
        return self._found

    def _no_compiler(self) -> str:
        """Why nothing can be compiled here, or ""."""
        if not self._compile_here:
            return "compiling here was not asked for"
        if find_nvcc() is None:
            return "nvcc was not found"
        try:
            find_headers(self._include)
        except RidgecastError as error:
            return str(error)
        return ""

    def _library(self, instance: Instance) -> tuple[Any, str]:
        if instance.symbol not in self._known():
            report = build_bundles(
                [instance],
                folder=self.folder,
                capability=str(self.gpu.info.facts["compute_capability"]),
                include=self._include,
            )
            if report.failed:
                raise MeasurementError(report.failed[instance.symbol])
            self._found = None
        path, version = self._known()[instance.symbol]
        if path not in self._loaded:
            try:
                self._loaded[path] = ctypes.CDLL(str(path))
            except OSError as error:
                raise MeasurementError(f"{path}: cannot be loaded: {error}") from error
        library = self._loaded[path]
        _declare(library, instance.symbol)
        return library, version

    def _facts(self, library: Any, instance: Instance) -> dict[str, Any]:
        values = (ctypes.c_longlong * 6)()
        if getattr(library, f"{instance.symbol}_facts")(values):
            return {}
        facts: dict[str, Any] = dict(zip(_FACTS, map(int, values), strict=False))
        hardware = self.gpu.info.hardware
        if hardware:
            from ...hardware import get

            most = get(hardware).sm.max_threads
            facts["occupancy"] = facts["blocks_per_sm"] * facts["threads"] / most
        return facts


# cutlass::Status (cutlass/cutlass.h)
_STATUS = {
    1: "operands are not aligned",
    2: "a number format that it does not take",
    3: "a leading dimension or layout that it does not take",
    4: "a problem that it does not take",
    5: "not supported on this device",
    6: "no workspace",
    7: "an internal error, often too much shared memory",
    8: "compiled for another device",
    9: "the driver is too old",
    10: "out of memory at launch",
    -1: "out of host memory",
}


def _declare(library: Any, symbol: str) -> None:
    """Say the C types of an instance's functions."""
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "workspace": (ctypes.c_longlong, [integer] * 6),
        "make": (pointer, [pointer] * 3 + [integer] * 6 + [pointer] * 3),
        "run": (integer, [pointer, pointer]),
        "free": (None, [pointer]),
        "facts": (integer, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"{symbol}_{name}")
        function.restype, function.argtypes = result, arguments
