"""What the harness adds to what it times, and what the meters cost, as ratios.

    python benchmarks/harness_overhead.py [--samples 1000] [--rounds 50] [--provider NAME ...]

Empty kernels: the median of timings that the harness takes (`take_samples`, meter polls included)
over the median of what the device itself says, in short turns, so that a machine that slows down
slows both; the ratio is the median over turns. What the device says:

    opencl         start of the first to end of the last of 64 launches, by events of a queue that
                   knows nothing of the harness
    torch, cuda    two events around a hundred replays of the same launches
    numba          a CPU has no clock of its own: one pair of the host's around 50 calls; beside it
                   a compiled loop of launches, what a C program would do without Python's call

Meters: the same kernel sampled in turns without a meter and with one, and with its reading thread
running as in an energy window; ratio of the medians. RAPL is read from a copy of its files where
the machine has none. Goals: 5 % for the first, 1 % for the second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ridgecast.measure import Meter, Point, Provider, Work
from ridgecast.measure.meters import get_meter
from ridgecast.measure.protocol import Protocol, take_samples
from ridgecast.measure.providers import get_provider

EMPTY = Point("launch", 8)
LOAD = Point("library", 512, 512, 512)  # about a millisecond on a CPU core


def harness(work: Work, count: int, meter: Meter | None) -> np.ndarray:
    """Durations [s] of `count` runs as a measurement takes them."""
    protocol = Protocol(
        min_samples=count, max_samples=count, warmup=0.0, precision=1e-9, time_cap=60.0
    )
    return take_samples(work, protocol, meter).times


def by_opencl(work: Any, count: int) -> np.ndarray:
    """Time from one launch to the next [s] by events of a queue of our own, 64 launches each."""
    import pyopencl as cl  # pyright: ignore[reportMissingImports]

    here, kernel, times = work._here, work._kernels[0], []
    queue = cl.CommandQueue(
        here.context, here.device, properties=cl.command_queue_properties.PROFILING_ENABLE
    )
    for _ in range(count):
        events = [
            cl.enqueue_nd_range_kernel(queue, kernel, work._global, work._local) for _ in range(64)
        ]
        queue.finish()
        times.append(1e-9 * (events[-1].profile.end - events[0].profile.start) / 64)
    return np.array(times)


def by_cuda(work: Any, count: int) -> np.ndarray:
    """Time of a launch [s] by two events around a hundred replays."""
    import torch  # pyright: ignore[reportMissingImports]

    launches, times = int(work.facts["runs_per_sample"]) * 100, []
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(max(count // 10, 3)):
        begin.record()
        work.enqueue(launches)
        end.record()
        end.synchronize()
        times.append(1e-3 * begin.elapsed_time(end) / launches)
    return np.array(times)


def by_long_run(work: Any, count: int) -> np.ndarray:
    """Time of a call [s] by one pair of clocks around 50."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        work.enqueue(50)
        work.synchronize()
        times.append((time.perf_counter() - begun) / 50)
    return np.array(times)


def by_compiled_loop(work: Any, count: int) -> np.ndarray:
    """Time of a launch [s] of the empty kernel in a compiled loop."""
    import numba  # pyright: ignore[reportMissingImports]

    from ridgecast.measure.providers import numba_kernels

    kernel = numba_kernels.empty()
    launch, workers = kernel.launch, int(work.facts["threads"])
    arrays = (np.ones((1, 1, workers), np.float32), np.zeros((1, 1, workers), np.float32))

    @numba.njit
    def loop(entry, a, c, count):
        for _ in range(count):
            launch(entry, a, a, c, workers)

    loop(kernel.entry, *arrays, 10)
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        loop(kernel.entry, *arrays, 20)
        times.append((time.perf_counter() - begun) / 20)
    return np.array(times)


# provider -> (what is compared with, how), the first being the device's own clock
DEVICE: dict[str, dict[str, Callable[[Any, int], np.ndarray]]] = {
    "numba": {"long run": by_long_run, "compiled loop": by_compiled_loop},
    "opencl": {"events": by_opencl},
    "cuda": {"events": by_cuda},
    "torch": {"events": by_cuda},
}


def prepared(name: str, point: Point) -> tuple[Provider, Work] | str:
    """Return provider and work of a point, or why there is none."""
    try:
        provider = get_provider(name)
        probe = provider.probe()
        reason = probe.reason if not probe.ok else provider.refusal(point)
        return reason or (provider, provider.prepare(point, np.random.default_rng(0)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def empty_kernels(name: str, samples: int, rounds: int) -> None:
    found = prepared(name, EMPTY)
    if isinstance(found, str):
        print(f"  {name:8} {found}")
        return
    work, meter = found[1], get_meter("clock")
    part = max(samples // rounds, 3)
    for label, device in DEVICE[name].items():
        ours, its = [], []
        harness(work, 50, meter)
        device(work, 20)
        for turn in range(rounds):
            steps: list[Callable[[], None]] = [
                lambda o=ours: o.append(np.median(harness(work, part, meter))),
                lambda i=its, d=device: i.append(np.median(d(work, part))),
            ]
            for step in steps if turn % 2 else reversed(steps):
                step()
        low, middle, high = np.quantile(np.array(ours) / np.array(its), (0.25, 0.5, 0.75))
        print(
            f"  {name:8} harness {1e6 * np.median(ours):8.3f} us, {label} "
            f"{1e6 * np.median(its):8.3f} us, ratio {middle:.3f} (half of the turns within "
            f"{low:.3f} to {high:.3f})"
        )
    work.close()


def copied_rapl(folder: Path) -> Path:
    """Make files like those of a RAPL package, for machines that have none."""
    zone = folder / "intel-rapl:0"
    zone.mkdir()
    for file, text in (("name", "package-0"), ("energy_uj", "1"), ("max_energy_range_uj", "9")):
        (zone / file).write_text(text)
    return folder


def meters() -> dict[str, Meter]:
    """Every meter that can be read here; RAPL from a copy where the machine has none."""
    found = {"clock": get_meter("clock")}
    for name in ("nvml", "rapl"):
        meter = get_meter(name)
        if meter.probe().ok:
            found[name] = meter
    if "rapl" not in found:
        copy = get_meter("rapl", root=copied_rapl(Path(tempfile.mkdtemp())))
        found["rapl (copied files)"] = copy
    return found


def meter_cost(name: str, meter: Meter, work: Work, rounds: int, per_round: int) -> None:
    """Print the ratio of medians with and without a meter, in turns of changing order."""
    alone, polled, open_ = [], [], []
    for turn in range(rounds):
        steps: list[Callable[[], None]] = [
            lambda: alone.append(np.median(harness(work, per_round, None))),
            lambda: polled.append(np.median(harness(work, per_round, meter))),
            lambda: open_.append(np.median(in_window(work, per_round, meter))),
        ]
        for step in steps if turn % 2 else reversed(steps):
            step()
    base = np.array(alone)
    noise = np.median(np.abs(base / np.median(base) - 1.0))
    print(
        f"  {name:20} polled {np.median(np.array(polled) / base):.4f}, in a window "
        f"{np.median(np.array(open_) / base):.4f} of the time without (one turn scatters by "
        f"{100 * noise:.1f} %)"
    )
    count = 2000
    begun = time.perf_counter()
    for _ in range(count):
        meter.throttled()
    each = (time.perf_counter() - begun) / count
    print(f"  {'':20} throttled() {1e6 * each:.2f} us on average, as often as can be")


def in_window(work: Work, count: int, meter: Meter) -> np.ndarray:
    meter.start()
    try:
        return harness(work, count, None)
    finally:
        meter.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--provider", nargs="*", default=list(DEVICE))
    a = parser.parse_args()
    print(f"empty kernels, {a.samples} timings in {a.rounds} turns (goal: ratio within 0.95-1.05)")
    for name in a.provider:
        empty_kernels(name, a.samples, a.rounds)
    for name in ("torch", "blas"):
        found = prepared(name, LOAD)
        if not isinstance(found, str):
            break
    else:
        raise SystemExit(f"no provider runs a load: {found}")
    print(f"meters beside {name} {LOAD.m}x{LOAD.n}x{LOAD.k} (goal: below 1.01)")
    for label, meter in meters().items():
        meter_cost(label, meter, found[1], a.rounds, max(a.samples // a.rounds, 5))
    found[1].close()


if __name__ == "__main__":
    main()
