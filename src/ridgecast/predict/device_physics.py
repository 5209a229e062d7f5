"""Library-GEMM time from twelve interpretable constants of a device, and their robust fit.

Owns the parametric model that transfer starts from (tile and split choice, tensor rate under a
power limit, L2 and memory traffic, latency of the main loop, launch) and a Levenberg-Marquardt fit
of its constants with a Gaussian prior. numpy only; knows no tables and no learned model.

The starting values and their spreads are assumed: they are where the search begins and how far a
few measured points may pull each constant, and every user of this module fits them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "CONSTANTS", "NO_POWER_LIMIT", "PHYSICAL_NAMES", "SPREAD", "START", "Device", "Parts", "Shapes",
    "coordinates", "fit_constants", "fit_device", "minimise", "physical_features", "physical_time",
]  # fmt: skip

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

CONSTANTS = (
    "rate",  # reachable fraction of the tensor rate
    "bandwidth",  # reachable fraction of the memory bandwidth
    "l2",  # bytes per clock and SM that L2 delivers
    "step",  # clocks of one main-loop step of 64 along k, when nothing else limits
    "prologue",  # clocks before and after the main loop
    "launch",  # thousand clocks of a launch, beyond 1 us that does not scale with the clock
    "split",  # us of a split-K reduction
    "slope",  # how sharply data stop fitting into L2
    "small_tile",  # power by which small tiles lose rate
    "capacity",  # fraction of L2 that holds data between repetitions
    "miss",  # clocks of memory latency when data come from memory
    "power",  # Tflop/s per board watt at the power limit
)
START: F64 = np.log([0.85, 0.9, 64, 150, 300, 3.0, 1.5, 2.0, 0.35, 0.7, 1500, 0.9])
SPREAD: F64 = np.array([0.15, 0.1, 0.5, 0.3, 0.5, 0.3, 0.3, 0.3, 0.5, 0.3, 0.3, 0.3])
NO_POWER_LIMIT = float(np.log(4.0))  # Tflop/s per W no device reaches in bf16: the limit is off

_TILES = (
    (256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64),
    (16, 64), (16, 32), (128, 32), (256, 64), (64, 256),
)  # fmt: skip
_SPLITS = (1, 2, 3, 4, 6, 8, 16)
_CONFIGS: F64 = np.array([(a, b, s) for a, b in _TILES for s in _SPLITS], np.float64)
_ROTATED = 6.0  # weight matrices that the collector cycles through, so 6 n k bytes must fit in L2
_K_STEP = 64.0


@dataclass(frozen=True, slots=True)
class Device:
    """Spec values: rate [flop/s], bandwidth [B/s], l2 [B], clock [Hz], power [W].

    `narrow` is how many operations of the format cost the energy of one bf16 operation (2 for
    8-bit formats, 4 for 4-bit ones: assumed from the ratio of their peak rates).
    `warpgroup` tells whether the tensor cores are fed by asynchronous bulk copies and run from
    shared or tensor memory (wgmma on sm_90, tcgen05 on sm_100/103) rather than by mma.sync
    (sm_80, sm_86, sm_89, sm_120): libraries ship another kind of kernel for either.
    """

    sm_count: int
    clock: float
    rate: float
    bandwidth: float
    l2: float
    power: float
    warpgroup: bool
    narrow: float = 1.0


@dataclass(frozen=True, slots=True)
class Shapes:
    """m, n, k [rows] as float64, bytes per element of the operands, and entries of a batch."""

    m: F64
    n: F64
    k: F64
    element: float = 2.0
    batch: F64 | float = 1.0

    def __getitem__(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> Shapes:
        batch = self.batch[rows] if isinstance(self.batch, np.ndarray) else self.batch
        return Shapes(self.m[rows], self.n[rows], self.k[rows], self.element, batch)

    def __len__(self) -> int:
        return len(self.m)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the time is made of, for the chosen configuration: seconds unless named otherwise."""

    compute: F64
    l2: F64
    latency: F64
    split_cost: F64
    memory: F64
    miss_b: F64  # share of B that comes from memory
    miss_a: F64
    tile_m: F64
    tile_n: F64
    split: F64
    waves: F64
    runner_up: F64  # third-best configuration's time over the best


def _logistic(x: F64) -> F64:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))


_CHUNK = 8192  # rows at a time: the candidates' temporaries then stay in the CPU's L2
_FEW = 64  # rows up to which all candidates are evaluated in one array
_FIELDS = ("compute", "l2", "latency", "split_cost", "memory", "miss_b", "miss_a", "tile_m",
           "tile_n", "split", "waves", "runner_up")  # fmt: skip


def physical_time(s: Shapes, d: Device, theta: F64) -> tuple[F64, Parts]:
    """Time [s] per row of `s` and its parts; `theta` is log of CONSTANTS.

    A candidate (tile, split) takes the 4-norm of compute, L2, latency and memory (resources that
    overlap imperfectly), plus its split-K reduction; the time is a soft minimum of the best three.
    Works in microseconds and single precision, by chunks of rows.
    """
    rows = len(s)
    time, table = np.empty(rows), np.empty((len(_FIELDS), rows))
    p: dict[str, float] = dict(zip(CONSTANTS, map(float, np.exp(theta)), strict=True))
    for i in range(0, rows, _CHUNK):
        part = slice(i, i + _CHUNK)
        _chunk_time(s[part], d, p, time[part], table[:, part])
    return time, Parts(*table)


def _chunk_time(s: Shapes, d: Device, p: dict[str, float], time: F64, out: F64) -> None:
    """Fill `time` [rows] and `out` [len(_FIELDS), rows] of one chunk."""
    bytes_a, bytes_b = s.batch * s.element * s.m * s.k, s.batch * s.element * s.n * s.k
    bytes_c = s.batch * 2.0 * s.m * s.n
    held = np.log(d.l2 * p["capacity"])
    miss_b = _logistic(p["slope"] * (np.log(_ROTATED * bytes_b + bytes_a + bytes_c) - held))
    miss_a = _logistic(p["slope"] * (np.log(bytes_b + bytes_a + bytes_c) - held))
    stream = (miss_b * bytes_b + miss_a * (bytes_a + bytes_c)) / (d.bandwidth * p["bandwidth"])
    memory = (stream * 1e6).astype(np.float32)
    plan = _Candidates(s, d, p, memory, bytes_c)
    with np.errstate(over="ignore"):  # hours to the fourth power; infinite is never the fastest
        best = plan.search()
    chosen = plan.soft_minimum()
    launch = 1e-6 + (p["launch"] * 1e3 + miss_b * p["miss"]) / d.clock
    time[:] = chosen.astype(np.float64) * 1e-6 + launch
    tile_m, tile_n, split = _CONFIGS[best].T
    parts = plan.picked(tile_m, tile_n, split)
    columns = (*(x * 1e-6 for x in parts[:4]), stream, miss_b, miss_a, tile_m, tile_n, split,
               parts[4], plan.third / plan.first)  # fmt: skip
    for row, column in zip(out, columns, strict=True):
        row[:] = column


class _Candidates:
    """The fastest three of all (tile, split) candidates for a chunk of rows; microseconds."""

    def __init__(
        self, s: Shapes, d: Device, p: dict[str, float], memory: F32, bytes_c: F64
    ) -> None:
        limits = np.array([d.rate * p["rate"], d.power * p["power"] * 1e12 * d.narrow])
        self.s, self.p = s, p
        self.sms = float(d.sm_count)
        self.rate = float(np.sum(limits**-8.0) ** (-1 / 8)) / d.sm_count * 1e-6
        self.l2 = s.element * _K_STEP / (p["l2"] * d.clock) * 1e6
        self.step = p["step"] / d.clock * 1e6
        self.prologue = p["prologue"] / d.clock * 1e6
        self.memory4 = _fourth(memory)
        # partial sums in fp32, written and read through the L2 at 2.5 times memory's rate (assumed)
        self.reduce = (bytes_c * 4.0 / (d.bandwidth * 2.5) * 1e6).astype(np.float32)
        self.first, self.second, self.third = (
            np.full(len(s), np.float32(np.inf)) for _ in range(3)
        )

    def _terms(self, tile_m: Any, tile_n: Any, steps: Any, waves: Any) -> tuple[Any, Any, Any]:
        """Compute, L2 and latency [us] of one candidate, or of one candidate a row."""
        rounds = np.ceil(waves)
        rounds *= steps
        reuse = np.minimum(1.0, tile_m * tile_n / (tile_m + tile_n) / 64.0) ** self.p["small_tile"]
        compute = rounds * _single(2.0 * tile_m * tile_n * _K_STEP / self.rate / reuse)
        l2 = np.sqrt(np.clip(waves, np.float32(0.125), np.float32(1.0)))
        l2 *= rounds
        l2 *= _single(self.l2 * (tile_m + tile_n))
        resident = np.clip(256.0 * 128.0 / (tile_m * tile_n), 1.0, 4.0)
        latency = np.ceil(waves * _single(1.0 / resident))
        latency *= steps * np.float32(self.step) + np.float32(self.prologue)
        return compute, l2, latency

    def search(self) -> npt.NDArray[np.intp]:
        """Index of the best candidate per row; leaves the best three totals behind."""
        s = self.s
        if len(s) <= _FEW:
            return self._search_at_once()
        blocks_m = {t: np.ceil(s.m / t) * s.batch / self.sms for t in {a for a, _ in _TILES}}
        blocks_n = {t: np.ceil(s.n / t) for t in {b for _, b in _TILES}}
        k_steps = np.ceil(s.k / _K_STEP)
        steps = {x: np.ceil(k_steps / x).astype(np.float32) for x in _SPLITS}
        cost = {
            x: np.float32(self.p["split"] * (0.5 + 0.1 * x)) + self.reduce * np.float32(x)
            for x in _SPLITS[1:]
        }
        best = np.zeros(len(s), np.intp)
        index = 0
        for a, b in _TILES:
            blocks = (blocks_m[a] * blocks_n[b]).astype(np.float32)
            for x in _SPLITS:
                compute, l2, latency = self._terms(a, b, steps[x], blocks * np.float32(x))
                total = _fourth(compute)
                total += _fourth(l2)
                total += _fourth(latency)
                total += self.memory4
                np.sqrt(total, out=total)
                np.sqrt(total, out=total)
                if x > 1:
                    total += cost[x]
                best[total < self.first] = index
                index += 1
                self._keep(total)
        return best

    def _search_at_once(self) -> npt.NDArray[np.intp]:
        """Do the same with the candidates as a second axis: fewer calls, for few rows."""
        s = self.s
        tile_m, tile_n, split = _CONFIGS.T
        batch = np.broadcast_to(np.asarray(s.batch, np.float64), s.m.shape)[:, None]
        blocks = np.ceil(s.m[:, None] / tile_m) * batch / self.sms * np.ceil(s.n[:, None] / tile_n)
        waves = blocks.astype(np.float32) * split.astype(np.float32)
        steps = np.ceil(np.ceil(s.k / _K_STEP)[:, None] / split).astype(np.float32)
        terms = self._terms(tile_m, tile_n, steps, waves)
        total = sum(_fourth(x.astype(np.float32)) for x in terms) + self.memory4[:, None]
        cost = (self.p["split"] * (0.5 + 0.1 * split)).astype(np.float32)
        cost = cost + self.reduce[:, None] * split.astype(np.float32)
        total = np.sqrt(np.sqrt(total)) + np.where(split > 1, cost, np.float32(0))
        best = np.argmin(total, axis=1)
        three = np.partition(total, 2, axis=1)[:, :3]
        three.sort(axis=1)
        self.first, self.second, self.third = three.T.astype(np.float32)
        return best

    def _keep(self, total: F32) -> None:
        """Merge totals into the best three."""
        first = np.minimum(self.first, total)
        np.maximum(self.first, total, out=total)
        second = np.minimum(self.second, total)
        np.maximum(self.second, total, out=total)
        np.minimum(self.third, total, out=self.third)
        self.first, self.second = first, second

    def soft_minimum(self) -> F32:
        """(mean of t^-8 over the best three)^(-1/8): near ties of kernels blend."""
        mean = sum((self.first / t) ** 8 for t in (self.first, self.second, self.third)) / 3.0
        return self.first * np.asarray(mean) ** np.float32(-1 / 8)

    def picked(self, tile_m: F64, tile_n: F64, split: F64) -> tuple[F64, ...]:
        """Compute, L2, latency, split cost [us] and waves of each row's best candidate."""
        s = self.s
        waves = np.ceil(s.m / tile_m) * np.ceil(s.n / tile_n) * s.batch * split / self.sms
        steps = np.ceil(np.ceil(s.k / _K_STEP) / split)
        compute, l2, latency = self._terms(tile_m, tile_n, steps, waves)
        cost = self.p["split"] * (0.5 + 0.1 * split) + self.reduce * split
        return compute, l2, latency, np.where(split > 1, cost, 0.0), waves


def _single(x: Any) -> Any:
    return np.asarray(x, np.float32)


def _fourth(x: Any) -> Any:
    square = x * x
    square *= square
    return square


def minimise(
    residuals: Callable[[F64], F64],
    start: F64,
    spread: F64,
    free: npt.NDArray[np.integer],
    *,
    rounds: int = 12,
    scale: float = 0.1,
) -> F64:
    """Pseudo-Huber least squares with prior N(start, spread), by Levenberg-Marquardt.

    `residuals(z)` gives log errors; those far beyond `scale` count linearly. Only `free` entries
    move. Derivatives by forward differences.
    """
    z, damping = start.copy(), 1e-2

    def cost(r: F64, at: F64) -> float:
        robust = 2.0 * np.sum(np.sqrt(1.0 + (r / scale) ** 2) - 1.0)
        return float(robust + np.sum(((at - start)[free] / spread[free]) ** 2))

    r = residuals(z)
    now = cost(r, z)
    for _ in range(rounds):
        jac = np.empty((len(r), len(free)))
        for j, index in enumerate(free):
            moved = z.copy()
            moved[index] += 0.02
            jac[:, j] = (residuals(moved) - r) / 0.02
        weight = 1.0 / np.sqrt(1.0 + (r / scale) ** 2) / scale**2
        normal = jac.T @ (weight[:, None] * jac) + np.diag(1.0 / spread[free] ** 2)
        slope = jac.T @ (weight * r) + (z - start)[free] / spread[free] ** 2
        before = now
        for _ in range(5):
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), slope)
            trial = z.copy()
            trial[free] -= np.clip(move, -0.5, 0.5)
            r_trial = residuals(trial)
            now_trial = cost(r_trial, trial)
            if now_trial < now:
                z, r, now, damping = trial, r_trial, now_trial, max(damping / 5.0, 1e-5)
                break
            damping *= 5.0
        if before - now < 1e-4 * before:
            break
    return z


def fit_device(
    s: Shapes, log_time: F64, d: Device, start: F64 = START, *, tight: float = 3.0, rounds: int = 15
) -> F64:
    """Constants (log) of one device from its rows; `tight` multiplies SPREAD (small: stay near)."""
    everything = np.arange(len(START))
    return minimise(
        lambda z: np.log(physical_time(s, d, z)[0]) - log_time,
        start, SPREAD * tight, everything, rounds=rounds,
    )  # fmt: skip


def fit_constants(
    tables: list[tuple[Shapes, F64, Device]], families: list[str], *, rounds: int = 10
) -> tuple[F64, list[F64]]:
    """Constants shared by several devices of one kind, with a launch constant per family.

    tables holds (shapes, log seconds, device) per device; families weigh alike. Returns the shared
    constants and each device's. The power limit is fitted for mma.sync devices only: on the others
    the frontier rows do not tell it from the rate.
    """
    names = sorted(set(families))
    size, launch = len(START), CONSTANTS.index("launch")

    def of(z: F64, family: str) -> F64:
        theta = z[:size].copy()
        theta[launch] += z[size + names.index(family)]
        return theta

    def residuals(z: F64) -> F64:
        return np.concatenate([
            (np.log(physical_time(s, d, of(z, f))[0]) - y) / np.sqrt(families.count(f))
            for (s, y, d), f in zip(tables, families, strict=True)
        ])  # fmt: skip

    start = np.concatenate([START, np.zeros(len(names))])
    spread = np.concatenate([SPREAD, np.full(len(names), 0.4)])
    free = np.arange(len(start))
    if tables[0][2].warpgroup:
        power = CONSTANTS.index("power")
        start[power], free = NO_POWER_LIMIT, free[free != power]
    z = minimise(residuals, start, spread, free, rounds=rounds)
    return z[:size], [of(z, f) for f in families]


def _tail(s: Shapes, d: Device, tile_m: float, tile_n: float) -> F64:
    waves = np.ceil(s.m / tile_m) * np.ceil(s.n / tile_n) / d.sm_count
    return np.log2(np.ceil(waves) / waves)


def coordinates(s: Shapes, d: Device, time: F64, parts: Parts) -> F64:
    """Coordinates [rows, 16] for a Gaussian process.

    The first seven are the shape, the shares of compute, latency and memory, and residency.
    """
    share = lambda x: np.log(np.maximum(x, 1e-9) / time)  # noqa: E731
    columns = [
        np.log2(s.m), np.log2(s.n), np.log2(s.k), share(parts.compute), share(parts.latency),
        np.log((parts.memory + 1e-9) / time + 0.05), parts.miss_b,
        *(_tail(s, d, a, b) for a, b in ((128, 128), (64, 128), (256, 128), (128, 256))),
        np.ceil(s.m / 64) * 64 / s.m, np.ceil(s.n / 128) * 128 / s.n, np.log2(parts.split),
        np.log(time / 2e-6), (s.m % 8 == 0) * 1.0,
    ]  # fmt: skip
    return np.stack(columns, 1)


PHYSICAL_NAMES = (
    "share_compute", "share_latency", "share_l2", "share_split", "share_memory", "miss_b",
    "miss_a", "log_split", "tile_m", "tile_n", "log_waves", "tail", "runner_up", "log_time",
    "log_clocks",
)  # fmt: skip
"""Columns of `physical_features`."""


def physical_features(d: Device, time: F64, parts: Parts) -> npt.NDArray[np.float32]:
    """Columns [rows, 15] that a learned correction sees beside the shape's own features."""
    share = lambda x: np.log(np.maximum(x, 1e-9) / time)  # noqa: E731
    columns = [
        share(parts.compute), share(parts.latency), share(parts.l2), share(parts.split_cost),
        np.log((parts.memory + 1e-9) / time + 0.02), parts.miss_b, parts.miss_a,
        np.log2(parts.split), parts.tile_m, parts.tile_n, np.log2(parts.waves),
        np.log2(np.ceil(parts.waves) / parts.waves), parts.runner_up, np.log(time / 2e-6),
        np.log(time * d.clock),
    ]  # fmt: skip
    return np.stack(columns, 1).astype(np.float32)
