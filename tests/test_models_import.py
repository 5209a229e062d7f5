"""Networks read from graphs: fusion, lifetimes, the batch; from ONNX files and torch modules."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ridgecast.errors import InfeasibleError, MissingExtraError, SpecError, UnsupportedError
from ridgecast.models import Layout, Tokens, from_onnx, from_torch
from ridgecast.models import graph_emit as emit
from ridgecast.models.graph_record import Tensor, Trace
from ridgecast.models.graph_steps import BATCHES, Origin, network_of
from ridgecast.ops import op_class

ONE = Layout()
HIDDEN, INTER, HEADS, LENGTH = 64, 256, 4, 16


def built(call):
    """The operation of a call: its fields are those that `ops` accepts."""
    return op_class(call.op)(**call.fields)


def matrix_flops(network, batch=1.0):
    calls = network.calls([Tokens(batch=batch)], ONE)
    works = [(c.count, built(c)) for c in calls]
    return sum(n * (op.flops if op.name == "gemm" else op.work().matrix_flops) for n, op in works)


def signature(network):
    calls = network.calls([Tokens(batch=2.0)], ONE)
    return sorted((c.op, c.part, c.count, tuple(sorted(c.fields.items()))) for c in calls)


def chain_of_two(batch):
    """x [b, 10] -> product with w [10, 30] -> relu, tanh -> product with v [30, 5]."""
    trace = Trace(inputs=["x"], outputs=["y"], constants={"a.weight", "b.weight"})
    tensors = [Tensor("x", (batch, 10)), Tensor("a.weight", (10, 30)), Tensor("h", (batch, 30)),
               Tensor("r", (batch, 30)), Tensor("t", (batch, 30)), Tensor("b.weight", (30, 5)),
               Tensor("y", (batch, 5))]  # fmt: skip
    trace.sizes.update({t.name: t.elements for t in tensors})
    x, a, h, r, t, b, y = tensors
    trace.add_weight(a.name)
    trace.add_weight(b.name)
    emit.add_gemm(trace, x, a, h, (1, batch, 30, 10))
    emit.add_chain(trace, "relu", [h], r)
    emit.add_chain(trace, "tanh", [r], t)
    emit.add_gemm(trace, t, b, y, (1, batch, 5, 30))
    return trace


def test_a_graph_of_three_calls_by_hand():
    network = network_of([chain_of_two(b) for b in BATCHES], Origin("two", ""))
    calls = network.calls([Tokens(batch=np.array([4.0, 0.0]))], ONE)
    assert [c.op for c in calls] == ["gemm", "pointwise", "gemm"]
    assert calls[0].fields["m"].tolist() == [4.0, 1.0]  # a point without a batch has no calls
    assert calls[0].count.tolist() == [1.0, 0.0]
    assert calls[1].fields["ops"] == 2 and calls[1].fields["special"] == 1
    assert calls[1].fields["elements"].tolist() == [120.0, 30.0]
    # the peak: 30 numbers read and 30 written by the chain; its inner result never leaves the chip
    assert network.activations(4.0, ONE) == 240.0
    assert network.activations(np.array([1.0, 8.0]), Layout(dp=4)).tolist() == [60.0, 120.0]
    assert network.parameters == 450.0
    assert network.calls([Tokens(batch=8.0)], Layout(dp=4))[0].fields["m"] == 2


def test_fixed_shapes_run_once_a_sample_and_cannot_be_cut():
    network = network_of([chain_of_two(2)], Origin("two", ""))
    assert [c.count for c in network.calls([Tokens(batch=3.0), Tokens(batch=1.0)], ONE)] == [
        4.0
    ] * 3
    assert network.activations(4.0, ONE) == 120.0  # passes follow each other
    with pytest.raises(InfeasibleError, match="cannot be cut"):
        network.calls([Tokens()], Layout(tp=2))


def test_a_graph_that_does_not_grow_linearly_is_refused():
    traces = [chain_of_two(b) for b in (2, 3, 9)]
    with pytest.raises(SpecError, match="does not grow linearly"):
        network_of(traces, Origin("two", "", cure="fix it"))


@pytest.mark.parametrize(("kind", "steps"), [("rms", 6), ("layer", 8)])
def test_spelt_out_norms_are_one_call(kind, steps):
    trace = Trace(inputs=["x"], outputs=["y"], constants={"n.weight"})
    x, row, weight = Tensor("x", (7, 12)), (7, 1), Tensor("n.weight", (12,))
    trace.sizes |= {"n.weight": 12.0}
    trace.add_weight("n.weight")
    d = x
    if kind == "layer":
        d = Tensor("d", (7, 12))
        emit.add_reduction(trace, [x], [Tensor("m", row)], "mean")
        emit.add_chain(trace, "sub", [x, Tensor("m", row)], d)
    emit.add_chain(trace, "pow", [d], Tensor("sq", (7, 12)))
    emit.add_reduction(trace, [Tensor("sq", (7, 12))], [Tensor("v", row)], "mean")
    emit.add_chain(trace, "add", [Tensor("v", row)], Tensor("ve", row))
    emit.add_chain(trace, "rsqrt", [Tensor("ve", row)], Tensor("s", row))
    emit.add_chain(trace, "mul", [d, Tensor("s", row)], Tensor("z", (7, 12)))
    emit.add_chain(trace, "mul", [Tensor("z", (7, 12)), weight], Tensor("y", (7, 12)))
    assert len(trace.steps) == steps
    (call,) = network_of([trace], Origin("norm", "")).plan
    assert call.op == "normalisation" and call.part == "n" and call.role == "norm"
    assert dict(call.fields) == {"rows": 7, "cols": 12, "kind": kind}


@pytest.mark.parametrize(
    ("shape", "perm", "want"),
    [
        ((8, 16, 4, 32), (0, 2, 1, 3), (16, 4, 8, 32)),
        ((8, 16, 4, 32), (0, 2, 3, 1), (16, 128, 8, 1)),
        ((1, 5, 7), (2, 0, 1), (5, 7, 1, 1)),
    ],
)
def test_permutations_by_hand(shape, perm, want):
    trace = Trace()
    x = np.zeros(shape)
    emit.add_transpose(trace, Tensor("x", shape), Tensor("y", x.transpose(perm).shape), perm)
    fields = trace.steps[0].fields
    assert tuple(fields[k] for k in ("rows", "cols", "batch", "inner")) == want


@pytest.mark.parametrize(("name", "call"), [("onnx", from_onnx), ("torch", from_torch)])
def test_missing_libraries_name_their_extra(monkeypatch, name, call):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"ridgecast\[{name}\]"):
        call("nothing")


# --- ONNX


@pytest.fixture
def onnx():
    pytest.importorskip("onnx", reason="needs onnx (pip install 'ridgecast[onnx]')")
    from onnx import TensorProto, helper, save

    return SimpleNamespace(h=helper, t=TensorProto, save=save)


def weight(onnx, name, *shape):
    data = np.zeros(shape, np.float32).tobytes()
    return onnx.h.make_tensor(name, onnx.t.FLOAT, shape, data, raw=True)


def ints(onnx, name, *values):
    return onnx.h.make_tensor(name, onnx.t.INT64, [len(values)], values)


def saved(onnx, path, nodes, inputs, constants, outputs=("y",), opset=20):
    """Write a graph; `nodes` as (operator, inputs, outputs, attributes)."""
    made = [onnx.h.make_node(op, ins, outs, **at) for op, ins, outs, at in nodes]
    values = [onnx.h.make_tensor_value_info(n, k, s) for n, k, s in inputs]
    ends = [onnx.h.make_empty_tensor_value_info(n) for n in outputs]
    graph = onnx.h.make_graph(made, "graph", values, ends, constants)
    domains = [onnx.h.make_opsetid("", opset), onnx.h.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.h.make_model(graph, opset_imports=domains), path)
    return path


def block_file(onnx, path, batch="batch"):
    """A transformer block as exporters write it: reshapes by computed shapes, attention apart."""
    nodes, constants = [], []
    for q in "qkv":
        perm = [0, 2, 3, 1] if q == "k" else [0, 2, 1, 3]
        nodes += [("MatMul", ["x", f"{q}_proj.weight"], [q], {}),
                  ("Reshape", [q, "heads"], [q + "r"], {}),
                  ("Transpose", [q + "r"], [q + "t"], {"perm": perm})]  # fmt: skip
    nodes += [
        ("MatMul", ["qt", "kt"], ["s"], {}), ("Div", ["s", "four"], ["s4"], {}),
        ("Softmax", ["s4"], ["p"], {"axis": -1}), ("MatMul", ["p", "vt"], ["o"], {}),
        ("Transpose", ["o"], ["ot"], {"perm": [0, 2, 1, 3]}), ("Shape", ["x"], ["xs"], {}),
        ("Reshape", ["ot", "xs"], ["or"], {}), ("MatMul", ["or", "o_proj.weight"], ["a"], {}),
        ("Add", ["a", "x"], ["r"], {}),
        ("LayerNormalization", ["r", "norm.weight", "norm.bias"], ["n"], {}),
        ("MatMul", ["n", "up.weight"], ["u"], {}), ("Add", ["u", "up.bias"], ["ub"], {}),
        ("Gelu", ["ub"], ["g"], {}), ("MatMul", ["g", "down.weight"], ["d"], {}),
        ("Add", ["d", "r"], ["y"], {}),
    ]  # fmt: skip
    constants = [weight(onnx, f"{q}_proj.weight", HIDDEN, HIDDEN) for q in "qkvo"]
    constants += [weight(onnx, "norm.weight", HIDDEN), weight(onnx, "norm.bias", HIDDEN),
                  weight(onnx, "up.weight", HIDDEN, INTER), weight(onnx, "up.bias", INTER),
                  weight(onnx, "down.weight", INTER, HIDDEN), weight(onnx, "four"),
                  ints(onnx, "heads", 0, LENGTH, HEADS, HIDDEN // HEADS)]  # fmt: skip
    inputs = [("x", onnx.t.FLOAT, [batch, LENGTH, HIDDEN])]
    return saved(onnx, path, nodes, inputs, constants)


def test_onnx_block_by_hand(onnx, tmp_path):
    network = from_onnx(block_file(onnx, tmp_path / "block.onnx"))
    assert network.name == "block" and network.native_dtype == "fp32" and network.batched
    assert network.parameters == 4 * 64 * 64 + 2 * 64 * 256 + 256 + 2 * 64
    calls = {c.part: c for c in network.calls([Tokens(batch=3.0)], ONE) if c.role != "other"}
    assert calls["up"].fields == {"m": 48, "n": 256, "k": 64}
    fields = calls["attention"].fields
    assert (fields["batch"], fields["q_heads"], fields["head_dim"]) == (3, 4, 16)
    assert fields["variant"] == "standard" and calls["norm"].fields["rows"] == 48
    # the peak of one sample: the residual and both sides of the activation
    assert network.activations(1.0, ONE) == LENGTH * (HIDDEN + 2 * INTER)
    fixed = from_onnx(tmp_path / "block.onnx", {"x": [3, LENGTH, HIDDEN]})
    assert not fixed.batched and matrix_flops(fixed) == matrix_flops(network, 3.0)


def test_onnx_operators_map_to_operations_that_exist(onnx, tmp_path):
    f, i = onnx.t.FLOAT, onnx.t.INT64
    ms = {"domain": "com.microsoft"}
    nodes = [
        ("Conv", ["x", "c.weight"], ["c"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("ConvTranspose", ["c", "t.weight"], ["t"], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("GroupNormalization", ["t", "g", "g"], ["gn"], {"num_groups": 2}),
        ("MaxPool", ["gn"], ["mp"], {"kernel_shape": [3, 3], "strides": [2, 2]}),
        ("Resize", ["mp", "", "scales"], ["rs"], {"mode": "linear"}),
        ("GlobalAveragePool", ["rs"], ["gap"], {}),
        ("Gather", ["e.weight", "ids"], ["em"], {}),
        ("LSTM", ["em", "l.W", "l.R"], ["seq"], {"hidden_size": 8}),
        ("MultiHeadAttention", ["em", "em", "em"], ["at"], {"num_heads": 2, **ms}),
        ("SkipLayerNormalization", ["at", "em", "n.weight"], ["sn"], ms),
        ("Attention", ["q", "q", "q"], ["a23"], {"q_num_heads": 4, "kv_num_heads": 2,
                                                 "is_causal": 1}),
        ("DequantizeLinear", ["w8", "scale"], ["wf"], {}),
        ("MatMul", ["sn", "wf"], ["mm"], {}),
        ("TopK", ["mm", "k"], ["top", "at5"], {}), ("ArgMax", ["mm"], ["best"], {}),
        ("CumSum", ["mm", "axis"], ["cs"], {}),
        ("Det", ["sq"], ["det"], {}),
    ]  # fmt: skip
    constants = [weight(onnx, "c.weight", 6, 3, 3, 3), weight(onnx, "t.weight", 6, 4, 4, 4),
                 weight(onnx, "g", 4), weight(onnx, "e.weight", 100, 12),
                 weight(onnx, "l.W", 1, 32, 12), weight(onnx, "l.R", 1, 32, 8),
                 weight(onnx, "n.weight", 12), ints(onnx, "k", 5),
                 onnx.h.make_tensor("scales", f, [4], [1.0, 1.0, 2.0, 2.0]),
                 onnx.h.make_tensor("axis", i, [], [2]), weight(onnx, "scale"),
                 onnx.h.make_tensor("w8", onnx.t.INT8, [12, 20], [0] * 240)]  # fmt: skip
    inputs = [("x", f, [2, 3, 9, 9]), ("ids", i, [7, 2]), ("q", f, [2, 5, 24]),
              ("sq", f, [2, 4, 4])]  # fmt: skip
    ends = ["gap", "seq", "a23", "top", "best", "cs", "det"]
    path = saved(onnx, tmp_path / "all.onnx", nodes, inputs, constants, ends, 23)
    network = from_onnx(path)
    calls = network.calls([Tokens()], ONE)
    for call in calls:
        built(call)  # fields are allowed
    by = {(c.op, c.part): c.fields for c in calls}
    assert built(next(c for c in calls if c.part == "c")).outputs == 25  # 9 / 2, up, squared
    assert built(next(c for c in calls if c.part == "t")).macs == 2 * 25 * 6 * 4 * 16
    assert by["embedding", "e"] == {"lookups": 14, "dim": 12, "table_rows": 100}
    assert by["recurrent", "lstm"]["hidden"] == 8 and by["gemm", "linear"]["n"] == 20
    heads = [c.fields for c in calls if c.op == "attention"]
    assert [(h["q_heads"], h["kv_heads"], h["head_dim"], h["causal"]) for h in heads] == [
        (2, 2, 6, False), (4, 2, 6, True)]  # fmt: skip
    assert [c.op for c in calls if c.part in ("sort", "scan", "pool")].count("sort") == 1
    assert network.unknown == ("Det: counted by its bytes alone, no operations",)
    assert "unknown operator Det" in network.warnings[0]
    assert network.parameters == 6 * 27 + 6 * 64 + 4 + 1200 + 32 * 20 + 12 + 240


def test_onnx_shapes_that_are_missing_or_wrong(onnx, tmp_path):
    path = tmp_path / "open.onnx"
    nodes = [("Relu", ["x"], ["r"], {}), ("Strange", ["r"], ["y"], {"domain": "com.microsoft"})]
    saved(onnx, path, nodes, [("x", onnx.t.FLOAT, ["batch", "length", 8])], [])
    with pytest.raises(SpecError, match=r"input x: dimension 1 \(length\).*shapes=\{'x'"):
        from_onnx(path)
    with pytest.raises(SpecError, match=r"got 2 dimensions, need 3"):
        from_onnx(path, {"x": [4, 8]})
    with pytest.raises(SpecError, match=r"got \[1, 4, 9\], the graph has"):
        from_onnx(path, {"x": [1, 4, 9]})
    with pytest.raises(SpecError, match=r"unknown tensor in shapes 'z'; nearest: x"):
        from_onnx(path, {"z": [1]})
    with pytest.raises(SpecError, match=r"tensor y: its shape does not follow.*shapes=\{'y'"):
        from_onnx(path, {"x": [None, 4, 8]})
    network = from_onnx(path, {"x": [2, 4, 8], "y": [2, 4, 8]})
    assert network.unknown[0].startswith("com.microsoft.Strange")
    assert [c.fields["elements"] for c in network.calls([Tokens()], ONE)] == [64, 64]
    with pytest.raises(SpecError, match="is not a file"):
        from_onnx(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(SpecError, match=r"not an ONNX model|holds no graph"):
        from_onnx(tmp_path / "text.onnx")


# --- torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs torch (pip install 'ridgecast[torch]')")


def block_module(torch):
    nn, act = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            for q in "qkvo":
                setattr(self, f"{q}_proj", nn.Linear(HIDDEN, HIDDEN, bias=False))
            self.norm = nn.LayerNorm(HIDDEN)
            self.up, self.down = nn.Linear(HIDDEN, INTER), nn.Linear(INTER, HIDDEN, bias=False)

        def forward(self, x):
            b, s, h = x.shape
            q, k, v = (p(x).view(b, s, HEADS, -1).transpose(1, 2)
                       for p in (self.q_proj, self.k_proj, self.v_proj))  # fmt: skip
            p = (q @ k.transpose(-1, -2) / 4.0).softmax(-1)
            r = self.o_proj((p @ v).transpose(1, 2).reshape(b, s, h)) + x
            return self.down(act.gelu(self.up(self.norm(r)))) + r

    return Block().eval()


def resnet_module(torch):
    nn = torch.nn

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
            self.pool, self.mid = nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=2)
            self.wide = nn.Conv2d(16, 16, 3, padding=(2, 4), dilation=(2, 4))
            self.up, self.head = nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.Linear(8, 10)

        def forward(self, x):
            x = self.pool(torch.relu_(self.norm(self.stem(x))))
            return self.head(self.up(x + self.wide(self.mid(x))).mean((2, 3)))

    return Residual().eval()


def counted(torch, module, *inputs):
    """FLOPs that torch counts, on meta tensors (recurrent kernels of a CPU hide theirs)."""
    from torch.utils.flop_counter import FlopCounterMode

    meta = module.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(*(x.to("meta") for x in inputs))
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["block", "residual", "lstm", "encoder"])
def test_torch_flops_and_parameters_are_torchs_own(torch, kind):
    nn = torch.nn
    module, x = {
        "block": lambda: (block_module(torch), torch.zeros(3, LENGTH, HIDDEN)),
        "residual": lambda: (resnet_module(torch), torch.zeros(3, 3, 64, 48)),
        "lstm": lambda: (nn.LSTM(8, 16, 2, bidirectional=True, batch_first=True),
                         torch.zeros(3, 5, 8)),
        "encoder": lambda: (nn.TransformerEncoderLayer(HIDDEN, HEADS, batch_first=True),
                            torch.zeros(3, LENGTH, HIDDEN)),
    }[kind]()  # fmt: skip
    network = from_torch(module, x, batch_dim=0)
    assert network.unknown == ()
    assert network.parameters == sum(p.numel() for p in module.parameters())
    assert matrix_flops(network, 3.0) == counted(torch, module, x)
    for call in network.calls([Tokens(batch=3.0)], ONE):
        built(call)


def test_torch_and_onnx_copies_of_a_block_are_the_same_network(torch, onnx, tmp_path):
    one = from_torch(block_module(torch), torch.zeros(2, LENGTH, HIDDEN), batch_dim=0)
    two = from_onnx(block_file(onnx, tmp_path / "block.onnx"))
    assert signature(one) == signature(two)
    assert sorted(map(str, one.weights())) == sorted(map(str, two.weights()))
    assert one.activations(7.0, ONE) == two.activations(7.0, ONE)


def test_torch_attention_recurrent_layers_and_tables_stay_whole(torch):
    nn, act = torch.nn, torch.nn.functional

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(100, 24), nn.RMSNorm(24)
            self.head = nn.Linear(24, 100, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            x = self.table(ids).view(*ids.shape, 4, 6).transpose(1, 2)
            x = act.scaled_dot_product_attention(x, x[:, ::2], x[:, ::2], is_causal=True,
                                                 enable_gqa=True)  # fmt: skip
            return self.head(self.norm(x.transpose(1, 2).flatten(2))).topk(3)

    with torch.device("meta"):  # a module without any memory
        network = from_torch(Words(), torch.zeros(2, 7, dtype=torch.long))
    calls = {c.op: c.fields for c in network.calls([Tokens()], ONE)}
    assert calls["attention"]["kv_heads"] == 2 and calls["attention"]["causal"]
    assert calls["attention"]["variant"] == "flash"
    assert calls["normalisation"]["kind"] == "rms" and calls["sort"] == {"rows": 14, "cols": 100}
    assert calls["embedding"] == {"lookups": 14, "dim": 24, "table_rows": 100}
    assert network.parameters == 100 * 24 + 24  # the table is the head: once


def test_torch_bad_input(torch):
    with pytest.raises(SpecError, match=r"need a torch\.nn\.Module"):
        from_torch(lambda x: x)
    linear = torch.nn.Linear(4, 4)
    with pytest.raises(SpecError, match="batch_dim=0 needs tensors that agree"):
        from_torch(torch.nn.Bilinear(4, 4, 4), torch.zeros(2, 4), torch.zeros(3, 4), batch_dim=0)

    class Looks(torch.nn.Module):
        def forward(self, x):
            return linear(x) if x.sum() > 0 else x

    with pytest.raises(UnsupportedError, match="looks at values"):
        from_torch(Looks(), torch.zeros(2, 4))
