"""GPU providers and campaigns without a GPU: a device of plain numbers stands in for torch's."""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ridgecast.errors import MeasurementError, SpecError, UnsupportedError
from ridgecast.measure.base import DeviceInfo, Point
from ridgecast.measure.protocol import Protocol, measure_point
from ridgecast.measure.providers import cutlass, cutlass_driver, torch_operands, triton_matmul
from ridgecast.measure.providers.torch_device import TorchGpu, catalogue_name
from ridgecast.measure.providers.torch_library import TorchLibrary
from ridgecast.measure.providers.torch_work import TorchWork

CAMPAIGNS = Path(__file__).resolve().parents[1] / "campaigns"
RUN = 1e-5  # s that the fake kernel takes
FLUSH = 3e-5


class Tensor:
    """An array that knows what poison and finiteness ask of a tensor."""

    dtype = SimpleNamespace(is_floating_point=True)

    def __init__(self, device: Device, size: int = 4) -> None:
        self.device, self.values = device, np.zeros(size)

    def fill_(self, value: float) -> None:
        self.values[:] = value

    def zero_(self) -> None:
        self.device.do(lambda: None, FLUSH)
        self.device.flushes += 1

    def item(self) -> float:
        self.device.alive()
        return float(self.values[0])


class Device:
    """A clock that launches advance, a queue that capture fills, and a way to break it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.flushes = self.launches = 0
        self.captured: list[Any] | None = None
        self.captures = True
        self.lost = ""

    def alive(self) -> None:
        if self.lost:
            raise RuntimeError(f"CUDA error: {self.lost}\nmore lines")

    def do(self, action: Any, seconds: float) -> None:
        self.alive()
        if self.captured is not None:
            self.captured.append((action, seconds))
            return
        action()
        self.now += seconds

    def torch(self) -> Any:
        """The part of torch that the room uses."""
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at = np.nan

            def record(self) -> None:
                self.at = device.now

            def synchronize(self) -> None:
                device.alive()

            def elapsed_time(self, other: Event) -> float:
                return (other.at - self.at) * 1e3

        class Graph:
            def capture_begin(self, capture_error_mode: str) -> None:
                if not device.captures:
                    raise RuntimeError("operation not permitted when stream is capturing")
                device.captured = []

            def capture_end(self) -> None:
                self.work, device.captured = device.captured, None

            def replay(self) -> None:
                for action, seconds in self.work or []:
                    device.do(action, seconds)

        stream = SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)
        cuda = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            device_count=lambda: 1,
            get_device_properties=lambda _: SimpleNamespace(
                name="NVIDIA H200", uuid="1", total_memory=1 << 37, multi_processor_count=132,
                L2_cache_size=60 << 20, major=9, minor=0,
            ),
            synchronize=lambda *_: device.alive(),
            current_stream=lambda *_: stream,
            Stream=lambda *_: stream,
            stream=lambda _: contextlib.nullcontext(),
            CUDAGraph=Graph,
            Event=Event,
            _sleep=lambda cycles: device.do(lambda: None, cycles / 2e9),
            empty_cache=lambda: None,
        )  # fmt: skip
        ones = Tensor(device)
        ones.fill_(1)
        return SimpleNamespace(
            cuda=cuda, __version__="2.11", version=SimpleNamespace(cuda="13.0"), int32=0, uint8=0,
            zeros=lambda *_, **__: Tensor(device), empty=lambda *_, **__: Tensor(device),
            ones=lambda *_, **__: ones, isfinite=lambda t: np.isfinite(t.values),
        )  # fmt: skip


class Gpu(TorchGpu):
    """TorchGpu on the fake device; `others` are processes that NVML would list."""

    def __init__(self, device: Device, **options: Any) -> None:
        super().__init__(**options)
        self._fake, self.others = device.torch(), set[int]()

    @property
    def torch(self) -> Any:
        return self._fake

    def _open_nvml(self, uuid: str) -> set[int]:
        processes = SimpleNamespace(
            nvmlDeviceGetComputeRunningProcesses=lambda _: [
                SimpleNamespace(pid=pid) for pid in self.others
            ],
            nvmlSystemGetDriverVersion=lambda: b"580.1",
        )
        self._nvml, self._nvml_reason = (processes, None), ""
        return set()


def work_of(device: Device, cache: str = "hot", sets: int = 1, value: float = 1.0) -> Any:
    gpu = Gpu(device)
    outputs = [Tensor(device) for _ in range(sets)]

    def launch(index: int) -> None:
        def run() -> None:
            device.launches += 1
            outputs[index].fill_(value)

        device.do(run, RUN)

    def check(index: int) -> float:
        return float(np.max(np.abs(outputs[index].values - 1.0)))

    return TorchWork(gpu, launch, outputs, check, cache=cache, tolerance=1e-3)


def test_hot_runs_are_a_graph_replay_over_its_launches():
    device = Device()
    work = work_of(device)
    assert work.facts["launch"] == "graph" and work.facts["runs_per_sample"] == 20  # 200 us / 10 us
    assert work.facts["buffer_sets"] == 1 and work.facts["hardware"] == "h200_sxm"
    assert np.allclose(work.sample(130), RUN, rtol=1e-9) and len(work.sample(130)) == 130
    assert device.flushes == 0 and work.verify() == 0.0


def test_cold_runs_flush_outside_their_events_and_rotate():
    device = Device()
    work = work_of(device, "cold", sets=3)
    before = device.flushes
    times = work.sample(70)
    assert np.allclose(times, RUN, rtol=1e-9) and device.flushes - before == 70
    assert work.facts["launch"] == "stream" and work.facts["runs_per_sample"] == 1
    assert work.facts["energy_launch"] == "graph"
    assert work.verify() == 0.0


@pytest.mark.parametrize("count", [1, 19, 20, 47])
def test_energy_runs_are_as_many_as_asked(count: int):
    device = Device()
    work = work_of(device)
    before = device.launches
    work.enqueue(count)
    work.synchronize()
    assert device.launches - before == count


def test_without_capture_runs_go_to_the_stream_and_say_why():
    device = Device()
    device.captures = False
    work = work_of(device)
    assert work.facts["launch"] == "stream" and "not permitted" in str(work.facts["graph_reason"])
    assert np.allclose(work.sample(5), RUN, rtol=1e-9) and work.verify() == 0.0


def test_a_graph_that_misses_the_kernel_is_not_timed():
    device = Device()
    gpu, out = Gpu(device), Tensor(device)

    def launch(index: int) -> None:  # a library that ignores torch's stream runs at once
        queue, device.captured = device.captured, None
        device.do(lambda: out.fill_(1.0), RUN)
        device.captured = queue

    work = TorchWork(gpu, launch, [out], lambda _: 0.0, cache="hot", tolerance=1.0)
    assert work.facts["launch"] == "stream" and "unwritten" in str(work.facts["graph_reason"])


@pytest.mark.parametrize("value", [np.nan, 2.0])
def test_garbage_fails_the_check(value: float):
    error = work_of(Device(), value=value).verify()
    assert not error <= 1e-3


class FakeProvider:
    name = "fake"

    def __init__(self, device: Device, breaks: str = "") -> None:
        self.device, self.gpu, self.breaks = device, Gpu(device), breaks

    def probe(self):
        return self.gpu.probe()

    def refusal(self, point: Point) -> str:
        return self.gpu.refusal()

    def prepare(self, point: Point, rng: np.random.Generator) -> Any:
        with self.gpu.checked("launching"):
            if self.breaks == "memory":
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            self.device.lost = self.breaks
        work = work_of(self.device)
        work._gpu = self.gpu
        return work


POINT = Point("library", 64, 64, 64)
QUICK = Protocol(warmup=0.0, min_samples=3, max_samples=10, time_cap=0.1)


def measured(provider: Any) -> dict[str, Any]:
    return measure_point(provider, POINT, rng=np.random.default_rng(0), protocol=QUICK)


def test_a_row_from_the_device():
    row = measured(FakeProvider(Device()))
    assert row["status"] == "ok" and row["time_s"] == pytest.approx(RUN)
    assert row["driver"] == "580.1" and row["other_processes"] == 0


def test_another_process_is_refused_and_seen_when_it_comes_later():
    provider = FakeProvider(Device())
    provider.gpu.others = {4321}
    row = measured(provider)
    assert row["status"] == "refused" and "other process" in row["reason"]
    provider.gpu.allow_shared = True
    assert measured(provider)["other_processes"] == 0  # of the work's own device
    work = work_of(Device())
    work._gpu.others = {4321}
    with pytest.raises(MeasurementError, match="other process"):
        work.sample(2)


def test_out_of_memory_is_a_failed_row_and_gives_memory_back():
    provider = FakeProvider(Device(), breaks="memory")
    provider.gpu.pool["operands"] = object()
    row = measured(provider)
    assert row["status"] == "failed" and "out of memory" in row["reason"]
    assert not provider.gpu.pool


def test_an_illegal_address_loses_the_device():
    provider = FakeProvider(Device(), breaks="an illegal memory access was encountered")
    with pytest.raises(MeasurementError, match=r"lost.*illegal memory access"):
        measured(provider)


def test_device_names():
    assert catalogue_name("NVIDIA H100 80GB HBM3") == "h100_sxm" and catalogue_name("FPGA 7") == ""


@pytest.mark.parametrize(
    ("point", "word"),
    [
        (Point("tiled", 8, 8, 8), "no kernel"),
        (Point("library", 8, 8, 8, "int4"), "multiplies no int4"),
        (Point("library", 16, 32, 32, "fp8_e4m3"), "layout nt"),
        (Point("library", 16, 32, 40, "fp8_e4m3", layout="nt"), "multiples of 16"),
        (Point("library", 16, 32, 32, "int8", layout="nt"), "above 16"),
        (Point("library", 64, 32, 32, "int8", layout="nt", batch=2), "batch"),
        (Point("copy", 6), "multiple of 4"),
        (Point("library", 1, 3, 5, "tf32", layout="tt", batch=3), ""),
    ],
)
def test_what_the_library_refuses(point: Point, word: str):
    reason = TorchLibrary(gpu=Gpu(Device())).refusal(point)
    assert (word in reason) if word else not reason


def test_library_options_are_checked():
    with pytest.raises(SpecError, match="scaling"):
        TorchLibrary(scaling="block")
    with pytest.raises(SpecError, match="profile"):
        TorchLibrary(profile=2)


# --------------------------------------------------------------------------------------- Triton


def triton_point(**changes: Any) -> Point:
    config = triton_matmul.triton_config((64, 128, 64), num_warps=8)
    given = {"m": 256, "n": 256, "k": 256, "dtype": "bf16", "config": config, **changes}
    return Point("triton", given.pop("m"), given.pop("n"), given.pop("k"), **given)


def test_triton_configurations():
    config = triton_matmul.triton_config((64, 128, 64), num_warps=8, stages=4, split_k=2)
    assert (config["warps_m"], config["warps_n"], config["swizzle"]) == (4, 2, 8)
    # 4 stages of (64 + 128) x 64 bf16 values; mma.sync keeps one stage less
    assert triton_matmul.shared_estimate(config, "bf16") == 4 * 192 * 64 * 2
    assert triton_matmul.shared_estimate({**config, "tile_m": 16}, "bf16") == 3 * 144 * 64 * 2
    provider = triton_matmul.TritonMatmul(gpu=Gpu(Device()))
    assert provider.refusal(triton_point()) == ""
    for changes, word in (
        ({"config": {**config, "tile_n": 96}}, "power of two"),
        ({"config": {**config, "tile_q": 1}}, "tile_q"),
        ({"config": {"tile_m": 16}}, "lacks tile_n"),
        ({"config": {**config, "warps_n": 3}}, "power of two"),
        ({"config": {**config, "split_k": 5}}, "split_k"),
        ({"dtype": "fp64"}, "no fp64"),
        ({"batch": 2}, "batch"),
    ):
        assert word in provider.refusal(triton_point(**changes))


def test_triton_compiles_a_kernel_once_for_sizes_that_it_sees_alike():
    same = {triton_matmul.variant(triton_point(m=m, k=k)) for m in (256, 512) for k in (128, 1024)}
    assert len(same) == 1
    other = {triton_matmul.variant(triton_point(m=m, k=k)) for m in (1, 250, 256) for k in (64, 96)}
    assert len(other) == 6


# --------------------------------------------------------------------------------------- CUTLASS

GROUPED = {"tile_m": 128, "tile_n": 128, "tile_k": 64, "warps_m": 8, "stages": 4, "inst_m": 64}
WARPS = {"tile_m": 128, "tile_n": 128, "tile_k": 32, "warps_m": 2, "warps_n": 2, "stages": 4}


def cutlass_point(config: dict[str, int], dtype: str = "bf16", layout: str = "nn", **more: Any):
    sizes = {"m": 256, "n": 256, "k": 256, **more}
    kernel = "cutlass_simt" if dtype == "fp32" else "cutlass_tensor"
    return Point(kernel, **sizes, dtype=dtype, layout=layout, config=config)


@pytest.mark.parametrize(
    ("point", "word"),
    [
        (cutlass_point(GROUPED), ""),
        (cutlass_point({**GROUPED, "warps_m": 4, "tile_m": 64, "cluster_m": 2}), ""),
        (cutlass_point({**GROUPED, "tile_k": 128}, "fp8_e4m3", "nt"), ""),
        (cutlass_point(WARPS), ""),
        (cutlass_point({**WARPS, "tile_k": 8, "warps_m": 4}, "fp32", "tt", m=77, k=13), ""),
        (cutlass_point({**GROUPED, "warps_m": 4, "split_k": 2}), "cooperative"),
        (cutlass_point({**GROUPED, "stages": 9}), "shared memory"),
        (cutlass_point({**GROUPED, "tile_k": 128}, "fp8_e4m3", "nn"), "layout nt"),
        (cutlass_point(GROUPED, k=100), "16 bytes"),
        (cutlass_point({**WARPS, "cluster_m": 2}), "warp groups"),
        (cutlass_point({**WARPS, "warps_m": 3}), "multiple of warps_m"),
        (cutlass_point({**WARPS, "split_k": 2, "stream_k": 1}), "exclude"),
        (cutlass_point({**WARPS, "stages": 2}), "need 3"),
        (cutlass_point({"tile_m": 64}), "lacks tile_n"),
    ],
)
def test_what_cutlass_products_run(point: Point, word: str):
    reason = cutlass_driver.complaint(point)
    assert (word in reason) if word else not reason
    if word:
        with pytest.raises(UnsupportedError):
            cutlass_driver.instance_of(point)


def test_cutlass_instances_are_named_by_what_is_compiled():
    of = cutlass_driver.instance_of
    one, two = of(cutlass_point(GROUPED)), of(cutlass_point({**GROUPED, "swizzle": 4}))
    assert one == two and one.arch("9.0") == "sm_90a"  # the scheduler's swizzle is a number
    assert of(cutlass_point({**GROUPED, "split_k": 4})).symbol != one.symbol
    warp = of(cutlass_point(WARPS))
    assert warp != of(cutlass_point({**WARPS, "swizzle": 4})) and warp.arch("9.0") == "sm_90"
    text = cutlass_driver.bundle_source([one], "4.2.0")
    assert text.startswith("// CUTLASS 4.2.0") and f"RIDGECAST_PRODUCT({one.symbol}," in text


def test_cutlass_libraries_are_found_by_symbol_and_driver(tmp_path: Path):
    symbol = cutlass_driver.instance_of(cutlass_point(WARPS)).symbol
    (tmp_path / "cutlass-x.so").write_bytes(b"")
    document = {"driver": "another", "symbols": [symbol], "cutlass": "4.2.0"}
    (tmp_path / "cutlass-x.json").write_text(json.dumps(document))
    provider = cutlass.Cutlass(libraries=[tmp_path], compile_here=False, gpu=Gpu(Device()))
    assert "no library holds" in provider.refusal(cutlass_point(WARPS))
    document["driver"] = cutlass_driver.driver_version()
    (tmp_path / "cutlass-x.json").write_text(json.dumps(document))
    provider = cutlass.Cutlass(libraries=[tmp_path], compile_here=False, gpu=Gpu(Device()))
    assert provider.refusal(cutlass_point(WARPS)) == ""
    with pytest.raises(MeasurementError, match="cannot be loaded"):
        provider.prepare(cutlass_point(WARPS), np.random.default_rng(0))
    with pytest.raises(SpecError, match=r"version\.h"):
        cutlass.find_headers(tmp_path)


# --------------------------------------------------------------------------------------- campaigns


def script(name: str) -> Any:
    if str(CAMPAIGNS) not in sys.path:
        sys.path.insert(0, str(CAMPAIGNS))
    return importlib.import_module(name)


def test_campaigns_hold_what_they_promise():
    tiled = script("a_tiled_h200").campaign()
    points = [p for s in tiled.stages for p in s.points]
    assert {p.config["tile"] for p in points} >= {1, 2, 4, 8, 16, 32}
    assert {512, 513, 8191, 8192} <= {p.m for p in points} and {p.dtype for p in points} == {"fp32"}
    tensor = script("b_tensor_configs_h200").campaign()
    hot = [p for s in tensor.stages[:2] for p in s.points]
    assert len({p.key for p in hot}) >= 3000 and {p.dtype for p in hot} == {"bf16", "fp8_e4m3"}
    assert {p.m for p in hot} >= {1, 64, 8192} and {p.kernel for p in hot} == {
        "triton",
        "cutlass_tensor",
    }
    assert all(p.cache == "cold" for s in tensor.stages[2:4] for p in s.points)
    library = script("c_library_h200").campaign()
    stages = {s.name: s.points for s in library.stages}
    assert len({(p.m, p.n, p.k, p.batch, p.dtype) for p in stages["time"]}) >= 1500
    assert len([p for p in stages["energy"] if p.repeat == 1]) >= 300
    patterns = [p.pattern for p in stages["energy-patterns"]]
    assert patterns.count("zeros") == patterns.count("sparse") == 20


def test_energy_of_the_fastest_the_slowest_and_a_spread():
    module = script("b_tensor_configs_h200")
    hot = module.campaign().stages[0].points
    times = {p.key: 1e-5 * (i + 1) for i, p in enumerate(hot)}
    rows = module.Rows({}, times)
    chosen = module.energy_points(rows, hot)
    assert len(chosen) >= 300 and all(p.energy for p in chosen)
    assert module.energy_points(module.Rows({}, {}), hot) == []

    def size(p: Point) -> tuple[Any, ...]:
        return (p.dtype, p.m, p.n, p.k)

    first = [p for p in hot if size(p) == size(hot[0])]
    ends = [min(first, key=lambda p: times[p.key]), max(first, key=lambda p: times[p.key])]
    keys = {p.key for p in chosen}
    assert all(module.again(p, energy=True).key in keys for p in ends)


def test_a_campaign_runs_resumes_and_blames(tmp_path: Path):
    command = [sys.executable, str(CAMPAIGNS / "c_library_h200.py"), "--out", str(tmp_path)]
    command += ["--provider", "blas", "--stages", "time", "--limit", "3", "--largest", "256"]
    command += ["--budget", "60", "--collect", str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    runner = script("runner")
    table = runner.read_table(tmp_path / "home" / "c_library_blas.parquet")
    assert len(table["point"]) == 6 and "ok" in set(table["status"].tolist())
    # a point that took the process along is written, and not tried again
    lost = {**Point("library", 9, 9, 9).columns(), "point": Point("library", 9, 9, 9).key}
    (tmp_path / "now.json").write_text(json.dumps({"provider": "blas", "rows": [lost]}))
    assert runner._blame(tmp_path, -11) and not runner._blame(tmp_path, -11)
    assert runner.finished_points(tmp_path / "blas")[lost["point"]]["status"] == "failed"


# -------------------------------------------------------------------- where torch and Triton are


class Cpu(TorchGpu):
    """Torch's CPU in the place of a GPU, for operands, references and the interpreter."""

    device = "cpu"
    info = DeviceInfo(
        "cpu", "cpu", memory=1 << 32, facts={"l2_bytes": 0, "compute_capability": "9.0"}
    )


@pytest.mark.parametrize("dtype", ["fp32", "tf32", "bf16", "fp8_e4m3", "int8"])
def test_operands_on_the_device_are_values_of_the_format(dtype: str):
    torch = pytest.importorskip("torch")
    from ridgecast.measure.providers.operands import round_to, tolerance

    gpu, rng = Cpu(), np.random.default_rng(0)
    point = Point("library", 33, 48, 96, dtype, layout="tn", pattern="sparse")
    each = torch_operands.buffer_sets(gpu, point, rng, lambda _: 2)[1]
    stored = each.operands.a.to(torch.float32).numpy()
    assert np.array_equal(round_to(stored, dtype), stored) and 0.4 < np.mean(stored == 0) < 0.6
    torch_operands.poison(each.out)
    assert torch_operands.product_error(torch, each.out, each.left, each.right, rng) == np.inf
    each.out.copy_(each.left.to(torch.float64) @ each.right.to(torch.float64))
    for limit in (1e9, 1.0):
        error = torch_operands.product_error(
            torch, each.out, each.left, each.right, rng, exact_flops=limit
        )
        assert error <= tolerance(dtype, 96)


@pytest.mark.heavy
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize(("dtype", "layout"), [("fp32", "nn"), ("fp16", "tn"), ("int8", "nt")])
def test_the_triton_kernel_in_its_interpreter(monkeypatch, dtype: str, layout: str, split: int):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton is first imported
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from ridgecast.measure.providers.operands import tolerance

    gpu, rng = Cpu(), np.random.default_rng(0)
    config = triton_matmul.triton_config((16, 32, 32), split_k=split, group_m=2)
    point = Point("triton", 65, 48, 112, dtype, layout=layout, config=config)
    sets = torch_operands.buffer_sets(gpu, point, rng, lambda _: 1)
    launch, _ = triton_matmul.TritonMatmul(gpu=gpu)._launcher(point, sets)
    torch_operands.poison(sets[0].out)
    launch(0)
    error = torch_operands.product_error(
        torch, sets[0].out, sets[0].left, sets[0].right, rng, exact_flops=1e9
    )
    assert error <= tolerance(dtype, 112)
