"""OpenCL platforms of this machine: which of them really runs a kernel, which does not and why.

A platform that cannot compile for its device may end the whole process instead of returning an
error, so the first kernel of every platform runs in a process of its own, with a time limit: what
it says comes back as lines of JSON, and where it stops is the platform that is to blame.

Owns the survey and the choice among platforms. Needs pyopencl only in the other process.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import MeasurementError, MissingExtraError

__all__ = ["DRIVER_CURE", "EXTRA_CURE", "Candidate", "choose", "explain", "import_pyopencl",
           "self_test", "survey"]  # fmt: skip

EXTRA_CURE = "pip install 'ridgecast[opencl]'"
DRIVER_CURE = "apt-get install pocl-opencl-icd (or the GPU vendor's OpenCL driver)"
_OTHERS = ("gpu", "accelerator", "cpu")  # in the order they are picked
_MOST_PLATFORMS = 32  # that may end the process before the survey gives up


@dataclass(frozen=True, slots=True)
class Candidate:
    """One device of one platform by its place in pyopencl's lists, and whether it runs a kernel."""

    platform: int
    device: int
    platform_name: str
    version: str
    device_name: str = ""
    kind: str = ""  # "gpu", "cpu" or "accelerator"
    ok: bool = False
    reason: str = ""

    @property
    def label(self) -> str:
        """Platform, version and device in a few words."""
        device = f", {self.device_name}" if self.device_name else ""
        return f"{self.platform_name} ({self.version}){device}"


def import_pyopencl() -> Any:
    """Import pyopencl; raises MissingExtraError with the line that installs it."""
    try:
        import pyopencl  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(f"pyopencl is not installed ({error}): {EXTRA_CURE}") from error
    return pyopencl


def survey(timeout: float = 60.0) -> tuple[Candidate, ...]:
    """Build and run a kernel on every device of every platform, each where a crash does no harm.

    `timeout` in s is for all devices of one process. Returns one Candidate a device (or one for
    a platform that has none or ends the process). Raises MissingExtraError without pyopencl, and
    MeasurementError when the platforms cannot even be listed.
    """
    import_pyopencl()
    found: list[Candidate] = []
    skip = 0
    for _ in range(_MOST_PLATFORMS):
        lines, ended = _run_child(skip, timeout)
        found += [Candidate(**line["device"]) for line in lines if "device" in line]
        if any("done" in line for line in lines):
            return tuple(found)
        begun = [line["begin"] for line in lines if "begin" in line]
        if not begun:
            raise MeasurementError(f"listing the OpenCL platforms {ended}; {DRIVER_CURE}")
        # other devices that had answered keep their answer
        place = (begun[-1]["platform"], begun[-1]["device"])
        found = [c for c in found if (c.platform, c.device) != place]
        found.append(Candidate(**begun[-1], reason=ended))
        skip = begun[-1]["platform"] + 1
    return tuple(found)


def _run_child(skip: int, timeout: float) -> tuple[list[dict[str, Any]], str]:
    """Lines that a surveying process wrote, and how it ended where it did not finish."""
    root = str(Path(__file__).parents[3])
    code = (
        f"import sys; sys.path.insert(0, {root!r}); "
        f"from {__name__} import _child; _child({skip}, sys.stdout)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout,
            errors="replace", check=False,
        )  # fmt: skip
        output, errors = done.stdout, done.stderr
        ended = _ending(done.returncode, errors)
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace")
        ended = f"did not answer within {timeout:g} s"
    lines: list[dict[str, Any]] = []
    for line in output.splitlines():
        try:
            said = json.loads(line)
        except ValueError:  # a driver that writes to stdout too
            continue
        if isinstance(said, dict):
            lines.append(said)
    return lines, ended


def _ending(code: int, errors: str) -> str:
    """How a process ended, with the last line it wrote."""
    how = f"ended the process with exit code {code}"
    if code < 0:
        try:
            how = f"crashed the process ({signal.Signals(-code).name})"
        except ValueError:
            how = f"crashed the process (signal {-code})"
    last = [line.strip() for line in errors.splitlines() if line.strip()][-1:]
    return f"{how}: {last[0][:200]}" if last else how


def _child(skip: int, out: Any) -> None:
    """Survey the platforms from `skip` on, one JSON line an event; runs in the other process."""
    import pyopencl as cl  # pyright: ignore[reportMissingImports]

    def say(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    try:
        platforms = cl.get_platforms()
    except cl.Error as error:  # the loader's way to say that there is none
        if "PLATFORM_NOT_FOUND" not in str(error):
            raise
        platforms = []
    for number, platform in enumerate(platforms):
        if number < skip:
            continue
        name, version = platform.name.strip(), " ".join(platform.version.split(",")[0].split())
        about: dict[str, Any] = {"platform": number, "platform_name": name, "version": version}
        say(begin={**about, "device": -1})
        try:
            devices = platform.get_devices()
            reason = "has no device"
        except cl.Error as error:
            devices, reason = [], f"has no device: {error}"
        if not devices:
            say(device={**about, "device": -1, "reason": reason})
        for place, device in enumerate(devices):
            about |= {"device": place, "device_name": device.name.strip(), "kind": kind_of(device)}
            say(begin=about)
            reason = self_test(device)
            say(device={**about, "ok": not reason, "reason": reason})
    say(done=True)


def kind_of(device: Any) -> str:
    """Kind of a pyopencl device: "gpu", "accelerator" or "cpu"."""
    types = import_pyopencl().device_type
    if device.type & types.GPU:
        return "gpu"
    return "accelerator" if device.type & types.ACCELERATOR else "cpu"


_TEST = """
__kernel __attribute__((reqd_work_group_size(8, 1, 1)))
void self_test(__global const float *in, __global float *out) {
    __local float kept[8];
    const int i = get_local_id(0);
    kept[i] = in[get_global_id(0)];
    barrier(CLK_LOCAL_MEM_FENCE);
    out[get_global_id(0)] = kept[7 - i] * 2.0f;
}
"""


def self_test(device: Any) -> str:
    """Build and run a kernel with local memory on a device; why it failed, or "".

    May end the process on a broken platform: `survey` calls it where that does no harm.
    """
    import numpy as np

    from .nvcc import trimmed

    cl = import_pyopencl()
    values = np.arange(16, dtype=np.float32)
    wanted = 2.0 * values.reshape(2, 8)[:, ::-1].ravel()
    try:
        context = cl.Context([device])
        queue = cl.CommandQueue(context)
        kernel = cl.Kernel(cl.Program(context, _TEST).build(), "self_test")
        read, copied = cl.mem_flags.READ_ONLY, cl.mem_flags.COPY_HOST_PTR
        source = cl.Buffer(context, read | copied, hostbuf=values)
        target = cl.Buffer(context, cl.mem_flags.WRITE_ONLY, values.nbytes)
        kernel(queue, (16,), (8,), source, target)
        got = np.full_like(values, np.nan)
        cl.enqueue_copy(queue, got, target)
        queue.finish()
    except cl.Error as error:
        return f"does not build or run a kernel: {trimmed(str(error), lines=3)}"
    return "" if np.array_equal(got, wanted) else "computes a wrong result"


def choose(candidates: Iterable[Candidate], platform: str = "", device: str = "") -> Candidate:
    """First candidate that works, GPUs before CPUs.

    `platform` is part of a platform's name or version, `device` a kind ("gpu", "cpu") or part of
    a device's name; letter case does not matter. Raises MeasurementError naming every candidate.
    """
    every = list(candidates)
    text = platform.lower()
    wanted = [c for c in every if text in f"{c.platform_name} {c.version}".lower()]
    if device:
        name = device.lower()
        wanted = [c for c in wanted if name == c.kind or name in c.device_name.lower()]
    working = [c for c in wanted if c.ok]
    if not working:
        asked = f" on platform {platform!r}" if platform else ""
        asked += f" on device {device!r}" if device else ""
        raise MeasurementError(f"no OpenCL device works{asked}: {explain(every)}")
    return min(working, key=lambda c: _OTHERS.index(c.kind))


def explain(candidates: Iterable[Candidate]) -> str:
    """Every platform that was tried, and what came of it."""
    told = [f"{c.label}: {'works' if c.ok else c.reason}" for c in candidates]
    return "; ".join(told) or "no OpenCL platform is installed"
