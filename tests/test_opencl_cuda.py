"""Kernels that are OpenCL C and CUDA C++ alike, run by OpenCL on a CPU and as CUDA on the host."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from ridgecast.errors import MeasurementError, MissingExtraError, SpecError
from ridgecast.measure.base import DeviceInfo, Point, Probe
from ridgecast.measure.kernels_src import (
    Limits,
    array_elements,
    micro_arrays,
    micro_error,
    plan_of,
    read,
    refusal,
    source,
)
from ridgecast.measure.protocol import Protocol, measure_point
from ridgecast.measure.providers import cuda as cuda_module
from ridgecast.measure.providers import nvcc, opencl, opencl_platforms
from ridgecast.measure.providers.operands import make_operands, product_error, tolerance
from ridgecast.measure.providers.torch_operands import Buffers, DeviceOperands

STAGED = {"mwg": 32, "nwg": 16, "kwg": 16, "mdimc": 8, "ndimc": 8, "mdima": 16, "ndimb": 8,
          "kwi": 2, "vwm": 2, "vwn": 2, "strm": 1, "strn": 1, "sa": 1, "sb": 1}  # fmt: skip
HALF_STAGED = {"mwg": 32, "nwg": 16, "kwg": 16, "mdimc": 8, "ndimc": 4, "mdima": 8, "ndimb": 8,
               "kwi": 4, "vwm": 4, "vwn": 1, "strn": 1, "sa": 1}  # fmt: skip
UNSTAGED = {"mwg": 16, "nwg": 32, "kwg": 8, "mdimc": 4, "ndimc": 8, "mdima": 4, "ndimb": 8,
            "kwi": 1, "vwm": 1, "vwn": 4, "strm": 1}  # fmt: skip


# --- plans and refusals: no device ---


def test_plan_covers_the_matrix_and_counts_shared_memory():
    plan = plan_of(Point("tiled", 65, 47, 93, layout="tn", batch=3, config={"tile": 16}))
    assert plan.groups == (3, 5, 3) and plan.threads == (16, 16)
    assert plan.shared_bytes == (16 * 17 + 16 * 16) * 4
    blocked = plan_of(Point("clblast", 65, 48, 96, config=STAGED))
    assert blocked.groups == (3, 3, 1) and blocked.threads == (8, 8) and blocked.columns_first
    assert blocked.shared_bytes == 16 * (32 + 16) * 4
    edges = {name: blocked.defines[name] for name in ("EDGE_M", "EDGE_N", "EDGE_K", "WHOLE_M")}
    assert edges == {"EDGE_M": 1, "EDGE_N": 0, "EDGE_K": 0, "WHOLE_M": 0}


@pytest.mark.parametrize(
    ("point", "says"),
    [
        (Point("tiled", 8, 8, 8, config={"tile": 33}), "from 1 to 32"),
        (Point("tiled", 8, 8, 8, config={"stages": 2}), "tiled takes tile; got stages"),
        (Point("tiled", 8, 8, 8, layout="nx"), "nn, nt, tn, tt"),
        (Point("tiled", 8, 8, 8, dtype="bf16"), "fp32, fp64, fp16"),
        (Point("tiled", 65536, 8, 8, config={"tile": 1}), "65536 groups along the second axis"),
        (Point("tiled", 1 << 20, 1 << 12, 8), "at most 2147483647"),
        (Point("clblast", 8, 8, 8, config={"gemmk": 1}), "gemmk 0"),
        (Point("clblast", 8, 8, 8, config={"mwg": 60}), "clblast.MWG"),
        (Point("clblast", 8, 8, 8, config={"mwg": 128, "nwg": 512}), "1024 outputs a thread"),
        (Point("clblast", 8, 8, 8, config={**STAGED, "mwg": 256, "nwg": 64, "kwg": 64}), "shared"),
        (Point("copy", 100), "multiple of 16"),
        (Point("launch", 1, config={"tile": 4}), "launch takes no configuration"),
        (Point("copy", 1 << 31), "the device has"),
        (Point("library", 8, 8, 8), "tiled, clblast, copy"),
    ],
)
def test_refusals_name_what_is_allowed(point, says):
    assert says in refusal(point, Limits(memory=1 << 32))


def test_refusal_of_a_format_that_the_device_lacks():
    assert "no fp64" in refusal(Point("tiled", 8, 8, 8, dtype="fp64"), Limits())
    assert refusal(Point("tiled", 8, 8, 8), Limits()) == ""


# --- OpenCL: survey, choice ---


def test_platform_that_crashes_is_a_reason_and_the_next_is_tried(monkeypatch):
    bad = {"platform": 0, "device": 0, "platform_name": "Old", "version": "1", "kind": "cpu",
           "device_name": "a CPU"}  # fmt: skip
    good = {**bad, "platform": 1, "platform_name": "New"}
    asked = []

    def child(skip, timeout):
        asked.append(skip)
        if skip == 0:
            ended = opencl_platforms._ending(-6, "noise\nunknown target CPU 'generic'\n")
            return [{"begin": bad}], ended
        return [{"begin": good}, {"device": {**good, "ok": True}}, {"done": True}], ""

    monkeypatch.setattr(opencl_platforms, "_run_child", child)
    monkeypatch.setattr(opencl_platforms, "import_pyopencl", lambda: None)
    found = opencl_platforms.survey()
    assert asked == [0, 1]
    assert found[0].reason == "crashed the process (SIGABRT): unknown target CPU 'generic'"
    assert opencl_platforms.choose(found).platform_name == "New"
    assert "Old (1), a CPU: crashed" in opencl_platforms.explain(found)
    with pytest.raises(MeasurementError, match=r"device 'gpu'.*Old.*New"):
        opencl_platforms.choose(found, device="gpu")


def test_gpu_before_cpu_and_choice_by_name():
    cpu = opencl_platforms.Candidate(0, 0, "PoCL", "3.1", "EPYC", "cpu", True)
    gpu = opencl_platforms.Candidate(1, 0, "NVIDIA CUDA", "3.0", "H200", "gpu", True)
    assert opencl_platforms.choose([cpu, gpu]) is gpu
    assert opencl_platforms.choose([cpu, gpu], device="cpu") is cpu
    assert opencl_platforms.choose([cpu, gpu], platform="pocl") is cpu


def test_survey_has_a_time_limit():
    pytest.importorskip("pyopencl", reason="needs pyopencl")
    with pytest.raises(MeasurementError, match=r"did not answer within 0\.001 s.*apt-get"):
        opencl_platforms.survey(timeout=0.001)


def test_without_pyopencl_the_probe_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    provider = opencl.OpenCl()
    probe = provider.probe()
    assert not probe.ok and "pyopencl is not installed" in probe.reason
    assert probe.cure == "pip install 'ridgecast[opencl]'"
    assert "pip install" in provider.refusal(Point("tiled", 8, 8, 8))


# --- OpenCL: the kernels for real ---


@pytest.fixture(scope="module")
def device():
    pytest.importorskip("pyopencl", reason="needs pyopencl")
    provider = opencl.OpenCl()
    probe = provider.probe()
    if not probe.ok:
        pytest.skip(f"no OpenCL platform builds a kernel: {probe.reason}")
    return provider


def _error(provider, point):
    work = provider.prepare(point, np.random.default_rng(3))
    try:
        return work.verify() / work.tolerance
    finally:
        work.close()


@pytest.mark.parametrize("tile", [1, 2, 7, 16, 32])
def test_tiled_is_right_on_ragged_sizes(device, tile):
    layout = {1: "nn", 2: "nt", 7: "tn", 16: "tt", 32: "nn"}[tile]
    point = Point("tiled", 65, 47, 93, layout=layout, batch=2, config={"tile": tile})
    assert _error(device, point) < 1


@pytest.mark.heavy
@pytest.mark.parametrize("tile", range(1, 33))
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_every_tile_in_every_layout(device, tile, layout):
    assert _error(device, Point("tiled", 61, 70, 45, layout=layout, config={"tile": tile})) < 1


@pytest.mark.parametrize(
    ("sizes", "layout", "config", "dtype"),
    [
        ((64, 48, 96), "tn", STAGED, "fp32"),
        ((66, 47, 93), "nt", STAGED, "fp32"),
        ((68, 45, 90), "tn", HALF_STAGED, "fp32"),
        ((33, 68, 61), "nn", UNSTAGED, "fp32"),
        ((65, 47, 93), "tt", {}, "fp64"),
    ],
)
def test_register_blocked_is_right(device, sizes, layout, config, dtype):
    point = Point("clblast", *sizes, layout=layout, batch=2, config=config, dtype=dtype)
    if "no fp64" in device.refusal(point):
        pytest.skip("the device has no fp64")
    assert _error(device, point) < 1


def test_a_measured_point_has_times_and_what_the_compiler_made(device):
    protocol = Protocol(warmup=0, time_cap=0.01, min_samples=3, max_samples=6)
    rng = np.random.default_rng(0)
    for cache in ("hot", "cold"):
        point = Point("tiled", 64, 64, 64, cache=cache, config={"tile": 8})
        row = measure_point(device, point, rng=rng, protocol=protocol)
        assert row["status"] == "ok" and row["time_s"] > 0, row["reason"]
        assert row["shared_bytes"] == 2 * 8 * 8 * 4 and row["threads"] == 64
        assert (row["buffer_sets"] > 1) == (cache == "cold")
    for kernel in ("copy", "triad", "launch"):
        row = measure_point(device, Point(kernel, 1 << 16), rng=rng, protocol=protocol)
        assert row["status"] == "ok" and row["time_s"] > 0, row["reason"]
    work = device.prepare(Point("launch", 1), rng)
    work.enqueue(3)
    work.synchronize()
    work.close()
    work.close()


def test_build_failure_and_garbage_are_failed_rows(device, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(opencl, "source", lambda *_: "#define REAL half9\nREAL x;\nmissing y;")
    row = measure_point(device, Point("tiled", 8, 8, 8), rng=rng)
    assert row["status"] == "failed" and "does not build" in row["reason"]
    assert "error:" in row["reason"] and "/tempfile" not in row["reason"]
    skips = source(plan_of(Point("tiled", 40, 40, 40)), "opencl").replace(
        "p < TILE", "p < TILE - 1"
    )
    monkeypatch.setattr(opencl, "source", lambda *_: skips)
    row = measure_point(device, Point("tiled", 40, 40, 40), rng=rng)
    assert row["status"] == "failed" and "wrong result" in row["reason"]


# --- nvcc ---

_LOG = """ptxas info    : 77 bytes gmem, 8 bytes cmem[3]
ptxas info    : Compiling entry function 'tiled' for 'sm_90'
ptxas info    : Function properties for helper
    8 bytes stack frame, 9 bytes spill stores, 9 bytes spill loads
ptxas info    : Function properties for tiled
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 8192 bytes smem
ptxas info    : Compile time = 2.1 ms
ptxas info    : Compiling entry function '_Z4copyPf' for 'sm_80'
ptxas info    : Function properties for _Z4copyPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 360 bytes cmem[0]
"""


def test_ptxas_report():
    found = nvcc.parse_ptxas(_LOG)
    assert found == {
        "tiled": nvcc.Resources(40, 8192, 12, 20, 16, 1),
        "_Z4copyPf": nvcc.Resources(8),
    }


def test_nvcc_refuses_and_explains(monkeypatch, tmp_path):
    with pytest.raises(SpecError, match="sm_NN"):
        nvcc.build("", name="x", arch="hopper")
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: None)
    with pytest.raises(MissingExtraError, match="CUDA toolkit"):
        nvcc.build("", name="x", arch="sm_90")
    fake = tmp_path / "nvcc"
    fake.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo V13.0.1 && exit\n"
        "echo '/tmp/here/kernel.cu(1): error: no such thing'; exit 2\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: fake)
    with pytest.raises(MeasurementError, match=r"exit code 2: kernel.cu\(1\): error: no such"):
        nvcc.build("x", name="x", arch="sm_90", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(MeasurementError, match="cannot write to the cache folder"):
        nvcc.build("x", name="x", arch="sm_90", cache=tmp_path / "file")


@pytest.mark.skipif(nvcc.find_nvcc() is None, reason="needs nvcc")
def test_every_kernel_compiles_for_two_architectures(tmp_path):
    points = (
        Point("tiled", 64, 64, 64, layout="tn", dtype="fp16"),
        Point("clblast", 64, 64, 61, layout="tn", config=STAGED),
        Point("l2_read", 1 << 16),
    )

    def compiled(point):
        plan = plan_of(point)
        # code for sm_80 joins that for sm_90 in one library
        flags = ("-gencode", "arch=compute_80,code=sm_80")
        text, name = cuda_module.library_source(plan), plan.function
        return plan, nvcc.build(text, name=name, arch="sm_90", flags=flags, cache=tmp_path)

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(compiled, points))
    for plan, built in made:
        assert built.resources[plan.function].shared == plan.shared_bytes
        assert built.resources[plan.function].spill_stores == 0
        assert built.log.count(f"entry function '{plan.function}'") == 2
    assert set(made[2][1].resources) == {"copy", "triad", "l2_read", "launch"}
    assert compiled(points[2])[1].cached


# --- CUDA: the source on the host, and the provider around it ---

# a thread of the host for each of a block, which go through the grid together
_HOST = """
#include <barrier>
#include <thread>
#include <vector>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __shared__ static
struct place { int x, y, z; };
static thread_local place threadIdx, blockIdx;
static place gridDim;
static std::barrier<> *gate;
static void __syncthreads() { gate->arrive_and_wait(); }
struct alignas(16) float4 { float x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
#define __ldcg(pointer) (*(pointer))
"""
_HOST_LAUNCH = """
extern "C" int ridgecast_launch(const int *groups, const int *threads, const int *sizes,
                                const REAL *a, const REAL *b, REAL *c, void *stream) {
    if (stream != (void *)77) return 1;
    std::barrier<> all(threads[0] * threads[1]);
    gate = &all;
    gridDim = {groups[0], groups[1], groups[2]};
    auto run = [=, &all](int x, int y) {
        threadIdx = {x, y, 0};
        for (int block = 0; block < groups[0] * groups[1] * groups[2]; block++) {
            blockIdx = {block % groups[0], block / groups[0] % groups[1],
                        block / (groups[0] * groups[1])};
            FUNCTION(sizes[0], sizes[1], sizes[2], a, b, c);
            all.arrive_and_wait();
        }
    };
    std::vector<std::thread> every;
    for (int y = 0; y < threads[1]; y++)
        for (int x = 0; x < threads[0]; x++) every.emplace_back(run, x, y);
    for (auto &each : every) each.join();
    return 0;
}
extern "C" int ridgecast_resources(const int threads, int *out) {
    out[0] = 4, out[1] = 32, out[2] = threads, out[3] = 0;
    return 0;
}
extern "C" const char *ridgecast_error(const int code) { return code ? "not that stream" : ""; }
"""


class _Tensor:
    """As much of a torch tensor as the provider needs, over a numpy array."""

    def __init__(self, values):
        self.values = values
        self.shape = values.shape

    def data_ptr(self):
        return self.values.ctypes.data

    def view(self, *shape):
        return _Tensor(self.values.reshape(shape))

    def transpose(self, one, other):
        return _Tensor(self.values.swapaxes(one, other))

    def item(self):
        return self.values.item()


class _Gpu:
    """As much of TorchGpu as the provider needs."""

    index, device, l2_bytes = 0, "cuda:0", 1 << 20
    info = DeviceInfo("NVIDIA H200", "gpu", memory=1 << 33,
                      facts={"compute_capability": "9.0", "sm_count": 132})  # fmt: skip

    def __init__(self, stream=77):
        cuda = SimpleNamespace(
            device=lambda index: contextlib.nullcontext(),
            current_stream=lambda index: SimpleNamespace(cuda_stream=stream),
        )
        zeros = lambda size, **_: _Tensor(np.zeros(size, np.float32))  # noqa: E731
        self.torch = SimpleNamespace(cuda=cuda, float32=np.float32, zeros=zeros)

    def probe(self):
        return Probe(True, device=self.info)

    def refusal(self):
        return ""

    def checked(self, what):
        return contextlib.nullcontext()


def _host_build(folder):
    """Stand in for nvcc: the library's CUDA source compiled for the host."""

    def build(text, *, name, arch):
        assert arch == "sm_90"
        text = _HOST + text.replace(read("launch_cuda.h"), _HOST_LAUNCH)
        number = len(list(folder.iterdir()))
        code, library = folder / f"{name}{number}.cpp", folder / f"{name}{number}.so"
        code.write_text(text)
        command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", "-pthread", "-w"]
        done = subprocess.run([*command, "-o", str(library), str(code)], capture_output=True,
                              text=True, check=False)  # fmt: skip
        if done.returncode:
            pytest.skip(f"g++ does not compile C++20 with threads: {done.stderr[:300]}")
        return nvcc.Built(library, {name: nvcc.Resources(32)}, "")

    return build


@pytest.fixture
def on_host(monkeypatch, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    monkeypatch.setattr(cuda_module, "build", _host_build(tmp_path))
    monkeypatch.setattr(cuda_module, "find_nvcc", lambda: tmp_path)


@pytest.mark.parametrize(
    "point",
    [
        Point("tiled", 13, 9, 17, layout="tn", batch=2, config={"tile": 6}),
        Point("clblast", 32, 34, 33, layout="tn", batch=2, config=STAGED),
        Point("clblast", 33, 31, 17, layout="nt", config=HALF_STAGED),
    ],
    ids=lambda p: f"{p.kernel}-{p.layout}",
)
def test_cuda_source_is_right_on_the_host(on_host, monkeypatch, point):
    rng = np.random.default_rng(0)
    ops = make_operands(point, rng)
    out = np.full((point.batch, point.m, point.n), np.nan, np.float32)
    tensors = DeviceOperands(_Tensor(ops.a), _Tensor(ops.b), point.layout, 0)
    sets = [Buffers(tensors, _Tensor(out))]
    monkeypatch.setattr(cuda_module, "sets_for", lambda *_: sets)
    monkeypatch.setattr(cuda_module, "gemm_work", lambda *given, **named: (*given, named))
    _, _, launch, used, named = cuda_module.Cuda(gpu=_Gpu()).prepare(point, rng)
    launch(0)
    made = used[0].out.values  # C as the check sees it: (batch, m, n)
    assert product_error(made, ops.left, ops.right, rng) <= tolerance("fp32", point.k)
    plan = plan_of(point)
    threads = plan.threads[0] * plan.threads[1]
    facts = named["facts"]
    assert facts["threads"] == facts["shared_bytes"] == threads and facts["blocks_per_sm"] == 4
    assert facts["waves"] == np.prod(plan.groups) / (4 * 132)


def test_cuda_micro_benchmarks_on_the_host(on_host):
    provider = cuda_module.Cuda(gpu=_Gpu())
    assert provider.probe().ok  # runs `launch`
    rng = np.random.default_rng(0)
    # an array that no group divides, each thread's sums against the whole
    point = Point("l2_read", 16 * 333)
    plan = plan_of(point)
    arrays = micro_arrays(point, plan, rng)
    assert [len(each) for each in arrays] == list(array_elements(point, plan))
    arrays[2].fill(np.nan)
    provider._runner(plan, [_Tensor(each) for each in arrays])()
    assert micro_error(plan, *arrays) < 1e-5
    arrays[2][-1] = np.nan
    assert micro_error(plan, *arrays) == np.inf


def test_cuda_errors_say_what_the_runtime_said(on_host):
    provider = cuda_module.Cuda(gpu=_Gpu(stream=5))
    probe = provider.probe()
    assert not probe.ok and probe.reason == "launching launch: not that stream (CUDA error 1)"
    assert "from 1 to 32" in provider.refusal(Point("tiled", 8, 8, 8, config={"tile": 64}))
    with pytest.raises(MeasurementError, match="fp32, fp64, fp16"):
        provider.prepare(Point("tiled", 8, 8, 8, dtype="bf16"), np.random.default_rng(0))


def test_cuda_compiles_ahead_once_per_kernel(monkeypatch):
    built = []

    def build(text, *, name, arch):
        built.append(name)
        raise MeasurementError("nvcc tiled: no")

    monkeypatch.setattr(cuda_module, "build", build)
    monkeypatch.setattr(cuda_module, "find_nvcc", lambda: None)
    provider = cuda_module.Cuda(gpu=_Gpu())
    assert provider.probe().cure == nvcc.NVCC_CURE
    shapes = [Point("tiled", m, 8, 8, config={"tile": 4}) for m in (8, 9, 10)]
    assert provider.precompile([*shapes, Point("tiled", 8, 8, 8, config={"tile": 99})], 2) == 1
    with pytest.raises(MeasurementError, match="nvcc tiled: no"):
        provider.prepare(shapes[1], np.random.default_rng(0))
    assert built == ["tiled"]
    provider.close()
