"""State-space and recurrent layers: algorithms written out, checked, and counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.ops.recurrent import Recurrent
from ridgecast.ops.state_space import SelectiveScan, Ssd
from ridgecast.testing import check_op


@pytest.mark.parametrize("name", ["selective_scan", "ssd", "recurrent"])
def test_conformance(name):
    check_op(name)


class Lanes:
    """Arithmetic on arrays that counts every element's operation."""

    def __init__(self):
        self.count = Counter()

    def add(self, a, b):
        return self._done("vector", a + b)

    def mul(self, a, b):
        return self._done("vector", a * b)

    def fma(self, a, b, c):
        return self._done("vector", a * b + c, 2)

    def exp(self, a):
        return self._done("special", np.exp(a))

    def softplus(self, a):
        return self._done("special", np.log(self.add(self.exp(a), 1.0)))

    def silu(self, a):
        return self.mul(a, self._done("special", 1.0 / self.add(self.exp(-a), 1.0)))

    def dot(self, a, b):
        self.count["matrix"] += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return a @ b

    def _done(self, unit, value, each=1):
        self.count[unit] += each * np.size(value)
        return value


def test_scan_step_counts_are_those_of_the_recurrence_written_out():
    length, channels, state = 3, 4, 5
    rng = np.random.default_rng(0)
    x, raw, z = rng.normal(size=(3, length, channels))
    b, c = rng.normal(size=(2, length, state))
    a, d, bias = (
        -rng.random((channels, state)),
        rng.normal(size=channels),
        rng.normal(size=channels),
    )
    on, h = Lanes(), np.zeros((channels, state))
    for t in range(length):
        dt = on.softplus(on.add(raw[t], bias))
        decay = on.exp(on.mul(dt[:, None], a))
        h = on.fma(decay, h, on.mul(on.mul(dt, x[t])[:, None], b[t]))
        y = np.zeros(channels)
        for s in range(state):
            y = on.fma(h[:, s], c[t, s], y)
        on.mul(on.fma(d, x[t], y), on.silu(z[t]))
    work = SelectiveScan(length=length, channels=channels, state=state, variant="step").work()
    assert work.flops == dict(on.count)
    assert work.launches == length


def test_scan_bytes_and_the_saving_of_fusing():
    """arXiv:2312.00752, sections 3.3.2 and 4.5: O(state) less traffic, 20 to 40 times faster."""
    kw = dict(batch=2, length=4096, channels=256, state=16, dtype="fp32", groups=1)
    fused, slow = SelectiveScan(**kw).work(), SelectiveScan(**kw, variant="materialised").work()
    cells = 2 * 4096 * 256
    small = 4 * (2 * 2 * 4096 * 16 + 256 * 16 + 2 * 256)
    assert fused.read == 4 * 3 * cells + small
    assert fused.written == 4 * cells + 4 * 2 * 256 * 16
    assert slow.moved - fused.moved == 4 * cells * (6 * 16 + 1)  # three tensors twice, x again
    assert 20 < slow.moved / fused.moved < 40
    assert slow.flops == fused.flops and slow.launches == 3
    carried = SelectiveScan(**kw, carry=True).work()
    assert carried.read - fused.read == 4 * 2 * 256 * 16


def naive_ssd(x, dt, a, b, c):
    """h_t = exp(dt a) h + dt x b, y = h c, for one head."""
    h, out = np.zeros((x.shape[1], b.shape[1])), []
    for t in range(len(x)):
        h = np.exp(dt[t] * a) * h + dt[t] * np.outer(x[t], b[t])
        out.append(h @ c[t])
    return np.array(out)


@pytest.mark.parametrize("chunk", [4, 5, 16])
def test_ssd_counts_are_those_of_the_chunked_algorithm_written_out(chunk):
    """It gives what the recurrence gives, and every product and lane operation is counted."""
    length, heads, p, n = 14, 3, 4, 6
    rng = np.random.default_rng(3)
    x, raw = rng.normal(size=(heads, length, p)), rng.normal(size=(heads, length))
    b, c = rng.normal(size=(2, length, n))
    a, d, bias = -rng.random(heads), rng.normal(size=heads), rng.normal(size=heads)
    on, states = Lanes(), np.zeros((heads, p, n))
    for start in range(0, length, chunk):
        at = slice(start, min(start + chunk, length))
        scores = on.dot(c[at], b[at].T)  # one group: shared by the heads
        for i in range(heads):
            dt = on.softplus(on.add(raw[i, at], bias[i]))
            steps = on.mul(dt, a[i])
            sums = np.cumsum(steps)
            on.count["vector"] += len(sums)
            mask = np.tril(on.exp(np.minimum(on.add(sums[:, None], -sums[None, :]), 0.0)))
            inside = on.dot(on.mul(on.mul(scores, mask), dt[None, :]), x[i, at])
            before = on.dot(c[at], states[i].T)
            weight = on.mul(on.exp(on.add(sums[-1], -sums)), dt)
            new = on.dot(x[i, at].T, on.mul(b[at], weight[:, None]))
            states[i] = on.fma(on.exp(sums[-1]), states[i], new)
            y = on.add(on.mul(before, on.exp(sums)[:, None]), inside)
            y = on.fma(d[i], x[i, at], y)
            truth = naive_ssd(x[i], np.log1p(np.exp(raw[i] + bias[i])), a[i], b, c)
            assert y == pytest.approx(truth[at] + d[i] * x[i, at])
    op = Ssd(length=length, heads=heads, head_dim=p, state=n, chunk=chunk)
    flops = op.work().flops
    assert (flops["bf16"], flops["vector"], flops["special"]) == (
        on.count["matrix"], on.count["vector"], on.count["special"])  # fmt: skip


def test_ssd_step_is_bound_by_its_state():
    op = Ssd(length=1, batch=8, heads=80, head_dim=64, state=128, variant="step")
    work, state = op.work(), 4 * 8 * 80 * 64 * 128
    assert work.moved == 2 * state + 2 * 8 * (2 * 80 * 64 + 80 + 2 * 128) + 4 * 3 * 80
    assert work.flops["vector"] == 8 * 80 * (5 * 64 * 128 + 3 * 64 + 3)
    assert "bf16" not in work.flops


def test_ssd_bytes_kernel_by_kernel():
    b, t, h, p, n, q = 2, 1000, 4, 64, 32, 256
    chunks, squares = 4, 3 * 256**2 + 232**2
    x, raw, bc = 2 * b * t * h * p, 2 * b * t * h, 2 * b * t * n
    f = 4 * b * t * h  # one fp32 a token and head
    states, scores, last = 4 * b * h * chunks * p * n, 4 * b * squares, 4 * b * h * p * n
    kernels = {  # read, written
        "sums": (raw + 12 * h, 2 * f),
        "states": (x + bc + 2 * f, states),
        "recurrence": (states + 4 * b * h * chunks, states + last),
        "scores": (2 * bc, scores),
        "outputs": (scores + x + 2 * f + bc + states, x),
    }
    work = Ssd(length=t, batch=b, heads=h, head_dim=p, state=n, chunk=q).work()
    assert work.read == sum(r for r, _ in kernels.values())
    assert work.written == sum(w for _, w in kernels.values())
    assert work.launches == len(kernels) and work.steps == chunks
    fused = Ssd(length=t, batch=b, heads=h, head_dim=p, state=n, chunk=q, variant="fused").work()
    assert fused.moved < work.moved and fused.flops == work.flops


def test_ssd_is_2_to_8_times_faster_than_the_scan_at_larger_states():
    """arXiv:2405.21060, abstract; on an A100 (312 TFLOP/s bf16, 19.5 fp32, 2.04 TB/s)."""
    rates = {"bf16": 312e12, "vector": 19.5e12, "special": 16 * 108 * 1.41e9}

    def time(work):
        return max(work.moved / 2.04e12, *(f / rates[u] for u, f in work.flops.items()))

    scan = SelectiveScan(length=8192, channels=2048, state=64, gated=False)
    dual = Ssd(length=8192, heads=32, head_dim=64, state=64)
    assert 2.0 < time(scan.work()) / time(dual.work()) < 8.0


# ---- recurrent ----


def test_lstm_by_hand():
    b, t, i, h = 3, 7, 5, 6
    work = Recurrent(batch=b, steps=t, input=i, hidden=h, dtype="fp32").work()
    assert work.flops == {
        "fp32": 2 * b * t * 4 * h * (i + h), "vector": 17 * b * t * h, "special": 10 * b * t * h,
    }  # fmt: skip
    parts, h_bytes, c_bytes = 4 * 4 * b * t * h, 4 * b * t * h, 4 * b * t * h
    weights = 4 * (4 * h * i + 2 * 4 * h)
    assert work.read == 4 * b * t * i + weights + parts + t * 4 * 4 * h * h + h_bytes + c_bytes
    assert work.written == parts + h_bytes + c_bytes
    assert (work.launches, work.steps) == (1 + t, 0)


def test_cells_count_gates_and_blocks():
    kw = dict(batch=2, steps=3, input=64, hidden=64)
    lstm, gru = Recurrent(**kw), Recurrent(**kw, cell="gru")
    assert gru.flops / lstm.flops == 3 / 4
    slstm = Recurrent(**kw, cell="slstm", heads=4)
    assert slstm.recurrent_weights == lstm.recurrent_weights / 4
    assert slstm.flops == 2 * 2 * 3 * 4 * (64 * 64 + 4 * 16 * 16)
    deep = Recurrent(**kw, layers=2, bidirectional=True)
    first, second = 64 + 64, 2 * 64 + 64  # the second layer reads both directions
    assert deep.flops == 2 * 2 * 3 * 4 * 64 * 2 * (first + second)


def test_persistent_weights_are_read_once_as_far_as_they_fit():
    """Diamos et al. 2016: at small batch the weights of every step are nearly all the traffic."""
    kw = dict(batch=4, steps=256, input=1152, hidden=1152, dtype="fp32")
    matrix = 4 * 4 * 1152**2
    streamed, held = Recurrent(**kw).work(), Recurrent(**kw, variant="persistent").work()
    assert streamed.moved / held.moved > 50
    assert held.steps == 256 and held.launches == 2
    half = Recurrent(**kw, variant="persistent", on_chip=matrix / 2).work()
    assert half.read - held.read == matrix / 2 * 255
    none = Recurrent(**kw, variant="persistent", on_chip=0.0).work()
    assert none.read - held.read == matrix * 255
    unfused = Recurrent(**kw, variant="unfused").work()
    assert unfused.moved > streamed.moved and unfused.launches == 1 + 2 * 256


def test_columns_equal_scalars():
    lengths = [1, 100, 257, 4096]
    for cls, kw in (
        (Ssd, dict(heads=8, chunk=100)),
        (SelectiveScan, dict(channels=96)),
    ):
        columns = {**{k: np.full(4, float(v)) for k, v in kw.items()}, "length": np.array(lengths)}
        table, bad, _ = cls.of_columns(columns, 4)
        assert not bad.any()
        for row, length in enumerate(lengths):
            one = cls(length=length, **kw).work()
            assert table.work().moved[row] == one.moved
            assert table.work().all_flops[row] == one.all_flops


@pytest.mark.parametrize(
    ("cls", "field", "kw"),
    [
        (SelectiveScan, "channels", dict(length=4, channels=10, groups=3)),
        (SelectiveScan, "length", dict(length=0, channels=10)),
        (Ssd, "heads", dict(length=4, heads=10, groups=3)),
        (Ssd, "variant", dict(length=4, heads=10, variant="scan")),
        (Recurrent, "heads", dict(steps=4, hidden=10, cell="slstm", heads=3)),
        (Recurrent, "heads", dict(steps=4, hidden=10, heads=2)),
        (Recurrent, "on_chip", dict(steps=4, hidden=10, on_chip=-1.0)),
    ],
)
def test_bad_input(cls, field, kw):
    with pytest.raises(SpecError, match=rf"{cls.name}\.{field}"):
        cls(**kw)
