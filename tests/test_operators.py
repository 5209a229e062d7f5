"""Operations other than GEMM: one engine, the ladder, learning, explanation, batch contract."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import ridgecast as rc
from ridgecast.cli.app import app
from ridgecast.errors import SpecError, UnsupportedError
from ridgecast.hardware import get
from ridgecast.kernels.operator import SPECIAL_SHARE, analytic_time, bound_of_parts, parts_of
from ridgecast.ops import OPS, Op, Work, op_class
from ridgecast.predict.bundle import open_bundle
from ridgecast.predict.operator_features import known
from ridgecast.predict.operator_fit import fit_operator
from ridgecast.predict.operator_model import load_operator, operator_rows
from ridgecast.predict.operator_train import train_operator, write_index
from ridgecast.predict.operators import answer_operator
from ridgecast.testing import example_fields

H200 = get("h200_sxm")
OTHERS = [name for name in OPS if name != "gemm"]


def test_parts_by_hand():
    work = Work({"bf16": 989.4e9, "special": 66.9e9 * SPECIAL_SHARE}, read=4e9, written=0.8e9)
    parts = parts_of(work, H200, "cold")
    assert float(parts["compute"]) == pytest.approx(1e-3)  # 989.4 TFLOP/s
    assert float(parts["special"]) == pytest.approx(1e-3)  # a sixteenth of 66.9 TFLOP/s
    assert float(parts["memory"]) == pytest.approx(1e-3)  # 4.8 TB/s
    assert float(bound_of_parts(parts)) == pytest.approx(1e-3)
    # three equal parts and one launch: 3 ** (1/4) of one
    assert float(analytic_time(work, H200, "cold")) == pytest.approx(
        3**0.25 * 1e-3 + H200.launch_latency, rel=1e-6
    )
    small = Work({}, read=1e6, written=0.0)
    assert float(parts_of(small, H200, "hot")["memory"]) == 0.0  # stays in the 50 MiB L2


def test_a_missing_unit_and_a_missing_link_are_refused():
    with pytest.raises(UnsupportedError, match="no unit for nvfp4"):
        parts_of(Work({"nvfp4": 1.0}), H200)
    alone = H200.replace(links={})
    with pytest.raises(UnsupportedError, match="no link to a peer"):
        parts_of(Work(links={"peer": 1.0}), alone)


@pytest.mark.parametrize("name", OTHERS)
def test_every_operation_is_predicted_and_explained(name):
    op = op_class(name)(**example_fields(op_class(name)))
    p = rc.predict(op, on="h200_sxm")
    low, high = p.interval("time")
    assert 0.0 <= p.bound <= low <= p.time <= high and p.memory >= 0.0
    e = p.explain()
    assert sum(part.value for part in e.time) == pytest.approx(p.time, rel=1e-9)
    assert all(part.value >= 0 for part in e.time)
    if p.energy is not None:
        assert sum(part.value for part in e.energy) == pytest.approx(p.energy, rel=1e-9)


def test_one_table_of_all_operations_keeps_bad_rows_apart():
    ops = [op_class(name)(**example_fields(op_class(name))) for name in OTHERS]
    rows = [{"op": o.name, "hardware": "h200_sxm"} | {n: getattr(o, n) for n in o.infos()}
            for o in ops]  # fmt: skip
    rows += [
        {"op": "gemm", "hardware": "h200_sxm", "dtype": "bf16", "m": 512, "n": 512, "k": 512},
        {"op": "attention", "hardware": "h200_sxm", "q_len": 8, "kv_len": 4, "q_heads": 4},
        {"op": "attention", "hardware": "h200_sxm", "q_len": 8, "kv_len": 8, "q_heads": 4,
         "kv_heads": 3},
        {"op": "nothing", "hardware": "h200_sxm"},
        {"op": "softmax", "hardware": "h2000"},
    ]  # fmt: skip
    names = list(dict.fromkeys(key for row in rows for key in row))
    words = {key for row in rows for key, v in row.items() if isinstance(v, str | bool)}
    table = {
        key: np.array([row.get(key, None if key in words else np.nan) for row in rows],
                      object if key in words else None)
        for key in names
    }  # fmt: skip
    out = rc.predict_table(table)
    count = len(ops) + 1
    assert (out["status"][:count] == "ok").all(), out["reason"][:count]
    assert (out["status"][count:] != "ok").all() and np.isnan(out["time_s"][count:]).all()
    assert "attention.q_len: got 8" in out["reason"][count]
    assert "attention.q_heads" in out["reason"][count + 1]
    assert "unknown op" in out["reason"][count + 2]
    for i, op in enumerate(ops):
        assert out["time_s"][i] == pytest.approx(rc.predict(op, on="h200_sxm").time, rel=1e-6)


def test_blank_cells_never_lend_a_row_the_words_of_another():
    rng = np.random.default_rng(0)
    rows = 300
    base = {
        "op": np.full(rows, "attention", object),
        "hardware": rng.choice(["h200_sxm", "l40s"], rows).astype(object),
        "dtype": rng.choice(["bf16", "fp8_e4m3"], rows).astype(object),
        "q_len": np.full(rows, 512), "kv_len": np.full(rows, 512), "q_heads": np.full(rows, 16),
    }  # fmt: skip
    blank = {name: np.full(rows, np.nan) for name in ("causal", "kv_dtype", "variant", "cache")}
    plain, padded = rc.predict_table(base), rc.predict_table(base | blank)
    np.testing.assert_array_equal(plain["time_s"], padded["time_s"])
    gemm = {"op": np.full(rows, "gemm", object), "hardware": base["hardware"],
            "dtype": base["dtype"]} | {n: np.full(rows, 512) for n in "mnk"}  # fmt: skip
    more = {name: np.full(rows, np.nan) for name in ("kernel", "layout", "cache", "collection",
                                                     "out_dtype", "b_dtype")}  # fmt: skip
    plain, padded = rc.predict_table(gemm), rc.predict_table(gemm | more)
    np.testing.assert_array_equal(plain["time_s"], padded["time_s"])


@pytest.mark.parametrize(
    ("column", "cell", "told"),
    [("window", "128k", "attention.window: got '128k'"), ("density", "10%", "attention.density"),
     ("q_len", 10**400, "attention.q_len"), ("batch", float("inf"), "attention.batch"),
     ("kv_dtype", [1, 2], "dtype")],
)  # fmt: skip
def test_one_bad_cell_is_named_and_stops_no_other_row(column, cell, told):
    table = {
        "op": np.full(2, "attention", object), "hardware": np.full(2, "h200_sxm", object),
        "q_len": np.array([8, 8], object), "kv_len": np.array([8, 8]), "q_heads": np.array([4, 4]),
        "causal": np.array([1.0, np.nan]),
    }  # fmt: skip
    cells = np.empty(2, object)
    cells[0], cells[1] = table.get(column, np.full(2, None, object))[0], cell
    out = rc.predict_table(table | {column: cells})
    assert out["status"].tolist() == ["ok", "invalid"] and told in out["reason"][1]


def test_a_cold_cache_is_never_faster():
    op = rc.Attention(q_len=1, kv_len=256, q_heads=32, kv_heads=8, batch=16)
    row = {"op": "attention", "hardware": "h100_sxm"} | {n: getattr(op, n) for n in op.infos()}
    table = {k: np.array([v, v], object if isinstance(v, str | bool) else None)
             for k, v in row.items()}  # fmt: skip
    out = rc.predict_table(table | {"cache": np.array(["hot", "cold"], object)})
    assert out["time_s"][0] < out["time_s"][1] and out["bound_s"][0] < out["bound_s"][1]


# ------------------------------------------------------------------------------------- learning


def measured(rows=600, seed=0):
    """Decode attention that takes 7 us and 1.6 times its bytes over the bandwidth, 2 % noise."""
    rng = np.random.default_rng(seed)
    kv_heads = 2 ** rng.integers(0, 4, rows)
    table = {
        "op": np.full(rows, "attention", object), "hardware": np.full(rows, "h200_sxm", object),
        "collection": np.full(rows, "made/up", object), "licence": np.full(rows, "none", object),
        "source_file": np.full(rows, "made_up.csv", object),
        "dtype": np.full(rows, "bf16", object), "kv_dtype": np.full(rows, "bf16", object),
        "batch": 2 ** rng.integers(0, 8, rows), "q_len": np.ones(rows),
        "head_dim": np.full(rows, 128),
        "kv_len": 2 ** rng.integers(8, 15, rows), "kv_heads": kv_heads,
        "q_heads": kv_heads * 2 ** rng.integers(0, 4, rows),
    }  # fmt: skip
    op, bad, _ = op_class("attention").of_columns(
        {k: v for k, v in table.items() if k in ("dtype", "kv_dtype")}
        | {k: np.asarray(table[k], float) for k in ("batch", "q_len", "kv_len", "kv_heads",
                                                   "q_heads", "head_dim")}
        | {"dtype": "bf16", "kv_dtype": "bf16"}, rows,
    )  # fmt: skip
    assert not bad.any()
    moved = np.asarray(op.work().moved)
    time = 7e-6 + 1.6 * moved / H200.memory.bandwidth
    return table | {"time_s": time * np.exp(rng.normal(0, 0.02, rows))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("models")
    (out / "card.json").write_text(json.dumps({"format": 1, "models": []}))
    write_index(out, train_operator(measured(), out))
    return out


def test_learned_from_rows_and_scored_on_groups_held_out(folder):
    line = json.loads((folder / "card.json").read_text())["operators"][0]
    scores = {s["split"]: s for s in line["scores"]}
    assert scores["unseen_group"]["mape"] < 0.05 and scores["frontier"]["mape"] < 0.08
    assert scores["unseen_group"]["coverage"] > 0.8
    assert scores["unseen_group"]["analytic_mape"] > 0.2
    op = rc.Attention(q_len=1, kv_len=3000, q_heads=32, kv_heads=8, batch=64)
    p = rc.predict(op, on="h200_sxm", model=folder)
    truth = 7e-6 + 1.6 * op.bytes / H200.memory.bandwidth
    assert p.basis == "learned" and p.time == pytest.approx(truth, rel=0.06)
    assert p.interval("time")[1] / p.interval("time")[0] < 1.4


def test_a_model_for_some_rows_answers_those_and_no_others(folder, tmp_path):
    out = tmp_path / "both"
    shutil.copytree(folder, out)
    latent = measured(300, seed=1) | {
        "collection": np.full(300, "made/latent", object), "head_dim": np.full(300, 576),
        "v_head_dim": np.full(300, 512), "kv_heads": np.ones(300), "q_heads": np.full(300, 64),
        "shared_kv": np.ones(300, bool),
    }  # fmt: skip
    latent["time_s"] = 30e-6 + 3 * 1152 * latent["batch"] * latent["kv_len"] / 4.8e12
    prompt = {k: v[:100] for k, v in latent.items()} | {
        "q_len": np.full(100, 512), "kv_len": np.full(100, 512), "shared_kv": np.zeros(100, bool),
        "head_dim": np.full(100, 192), "v_head_dim": np.full(100, 128),
        "time_s": 50e-6 + 2e-6 * latent["batch"][:100],
    }  # fmt: skip
    latent = {k: np.concatenate([v, prompt[k]]) for k, v in latent.items()}
    wrong = {k: v[:50] for k, v in latent.items()} | {"time_s": np.full(50, 1.0)}
    latent = {k: np.concatenate([v, wrong[k]]) for k, v in latent.items()}
    latent["valid"] = np.repeat([True, False], [400, 50])
    write_index(out, train_operator(latent, out, splits={"attention": ()}))
    lines = {e["collection"]: e for e in json.loads((out / "card.json").read_text())["operators"]}
    assert lines["made/latent"]["kind"] == "latent" and "for" not in lines["made/up"]
    table = {
        "op": ["attention"] * 4, "hardware": ["h200_sxm"] * 4, "q_len": [1] * 4,
        "kv_len": [4096] * 4, "batch": [32] * 4, "kv_heads": [8, 1, 1, 1], "q_heads": [64] * 4,
        "head_dim": [128, 576, 576, 192], "v_head_dim": [128, 512, 512, 128],
        "shared_kv": [False, True, False, False],
    }  # fmt: skip
    table = {k: np.array(v, object if isinstance(v[0], str) else None) for k, v in table.items()}
    one, both = (rc.predict_table(table, model=m) for m in (folder, out))
    assert both["basis"].tolist() == ["learned", "learned", "transferred", "transferred"]
    assert one["time_s"][[0, 2]].tolist() == both["time_s"][[0, 2]].tolist()  # untouched
    truth = 30e-6 + 3 * 1152 * 32 * 4096 / 4.8e12
    assert both["time_s"][1] == pytest.approx(truth, rel=0.06) and one["basis"][1] == "transferred"
    assert ["latent" in reason for reason in both["reason"]] == [False, True, False, True]
    some = table | {"q_len": np.array([1, 2, 1, 1])}  # numbers go with the flags they came with
    assert rc.predict_table(some, model=out)["basis"][1] == "transferred"
    asked = rc.predict_table(table | {"collection": np.full(4, "latent", object)}, model=out)
    assert asked["status"].tolist() == ["no_answer", "ok", "no_answer", "ok"]
    assert "'latent' of such attention" in asked["reason"][0] and np.isnan(asked["time_s"][0])


def test_what_was_not_measured_is_transferred_and_wider(folder):
    op = rc.Attention(q_len=1, kv_len=3000, q_heads=32, kv_heads=8, batch=64)
    known_width = np.ptp(np.log(rc.predict(op, on="h200_sxm", model=folder).interval("time")))
    small = rc.Attention(q_len=1, kv_len=3000, q_heads=32, kv_heads=8, batch=64, kv_dtype="fp8")
    other = rc.predict(small, on="h200_sxm", model=folder)
    assert other.basis == "transferred" and "not measured" in other.reason
    assert np.ptp(np.log(other.interval("time"))) > known_width
    beyond = rc.Attention(q_len=1, kv_len=500_000, q_heads=32, kv_heads=8, batch=64)
    assert rc.predict(beyond, on="h200_sxm", model=folder).basis == "transferred"
    faster = get("h200_sxm").what_if({"memory.bandwidth": "+20%"})
    p, q = rc.predict(op, on="h200_sxm", model=folder), rc.predict(op, on=faster, model=folder)
    assert q.basis == "transferred" and p.time / 1.25 < q.time < p.time
    assert rc.predict(op, on="l40s", model=folder).basis == "analytic"
    fp16 = rc.Attention(q_len=1, kv_len=3000, q_heads=32, kv_heads=8, batch=64, dtype="fp16")
    assert rc.predict(fp16, on="h200_sxm", model=folder).basis == "learned"  # as wide as bf16


def test_a_model_says_the_same_after_it_was_saved(tmp_path):
    rows = operator_rows(measured(200), "attention", H200)
    model = fit_operator(rows, "attention", H200, "made/up")
    model.save(tmp_path / "m")
    again = load_operator(tmp_path / "m")
    op = rc.Attention(q_len=1, kv_len=4096, q_heads=16, kv_heads=8, batch=8)
    k = known(op, 1, H200)
    np.testing.assert_allclose(
        model.predict(op, k, H200, 0.9)[:3], again.predict(op, k, H200, 0.9)[:3], rtol=2e-2
    )
    (tmp_path / "m" / "smooth.npz").write_bytes(b"no zip")
    with pytest.raises(SpecError, match="damaged"):
        load_operator(tmp_path / "m")


def test_shipped_models_answer_within_their_claims():
    bundle = open_bundle()
    lines = bundle.card.get("operators", [])
    assert {line["op"] for line in lines} == {"attention", "moe", "collective"}
    for line in lines:
        model = bundle.operator(line["op"], line["hardware"], line["collection"])
        assert model is not None and model.card["licence"] == "Apache-2.0"
    op = rc.Attention(q_len=4096, kv_len=4096, q_heads=32, kv_heads=8)
    found = answer_operator(op, known(op, 1, H200), H200, bundle, 0.9)
    assert found.basis[0] == "learned"
    for name, basis in (("rtx_4090", "transferred"), ("mi300x", "analytic")):
        p = rc.predict(op, on=name)
        assert p.basis == basis, name  # relatives are of the same vendor
    low, high = rc.predict(op, on="rtx_4090").interval("time")
    assert high / low > 1.3


def test_shipped_models_know_latent_attention_and_say_what_they_do_not():
    for name in ("h100_sxm", "h200_sxm", "b200_sxm", "gb200", "b300_sxm", "gb300"):
        decode = {"q_len": 1, "kv_len": 8192, "batch": 128, "q_heads": 128, "kv_heads": 1,
                  "head_dim": 576, "v_head_dim": 512, "shared_kv": True}  # fmt: skip
        wide, narrow = (rc.predict(rc.Attention(**decode, dtype=d), on=name)
                        for d in ("bf16", "fp8"))  # fmt: skip
        prompt = rc.predict(rc.Attention(q_len=4096, kv_len=4096, q_heads=16, head_dim=192,
                                         v_head_dim=128), on=name)  # fmt: skip
        for p in (wide, narrow, prompt):
            assert p.basis == "learned" and "trtllm" in p.reason and p.time > p.bound
        assert 0.4 * wide.time < narrow.time < wide.time  # half the bytes, more overhead
        for change in ({"kv_dtype": "fp8"}, {"q_len": 4}):  # measured on no device
            assert rc.predict(rc.Attention(**decode | change), on=name).basis == "transferred"


def all_reduces(name, sizes, devices, collection=""):
    rows = len(sizes)
    words = {"op": "collective", "kind": "all_reduce", "hardware": name, "collection": collection}
    return rc.predict_table({
        **{k: np.full(rows, v, object) for k, v in words.items()}, "bytes": np.array(sizes, float),
        "gpus": np.full(rows, devices), "gpus_per_node": np.full(rows, devices),
    })  # fmt: skip


def test_engines_own_all_reduces_are_shipped_and_chosen_by_word():
    bundle = open_bundle()
    for name in ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300"):
        for engine in ("trtllm", "sglang", "vllm"):
            own = bundle.collection_of("collective", name, engine)
            assert own.startswith(f"aiconfigurator/{engine}-") and not own.endswith("eager")
            for devices in (2, 4, 8):
                t = all_reduces(name, [16384, 1 << 28], devices, own)["time_s"]
                bus = 2 * (devices - 1) / devices * (1 << 28) / t[1]
                assert 2e-6 < t[0] < 35e-6 and 100e9 < bus < 900e9  # NVLink: 450, 900 a direction
    assert bundle.collection_of("collective", "gb200", "nobody") == ""
    assert bundle.collection_of("collective", "gb200", "") == ""


def test_a_gb200_takes_wide_all_reduces_from_a_gb300():
    own = open_bundle().collection_of("collective", "gb200", "trtllm")
    p = all_reduces("gb200", [1 << 19], 16, own)
    q = all_reduces("gb300", [1 << 19], 16, "trtllm")
    assert (p["basis"][0], q["basis"][0]) == ("transferred", "learned") and "gb300" in p["reason"][
        0
    ]
    assert q["time_s"][0] == pytest.approx(7.1e-6, rel=0.1)  # its table
    assert p["time_s"][0] == pytest.approx(q["time_s"][0], rel=0.1)
    assert "vllm" in all_reduces("gb200", [1 << 19], 4)["reason"][0]  # none asked: before NCCL


# ----------------------------------------------------------------------------------- literature


def test_two_four_sparsity_gains_at_most_twice():
    sparse = op_class("sparse_gemm")
    for m in (16, 4096):
        dense = rc.predict(rc.Gemm(m, 4096, 4096), on="h200_sxm").bound
        half = sparse(m=m, n=4096, k=4096, variant="2:4")
        assert dense / rc.predict(half, on="h200_sxm").bound <= 2.0 + 1e-9


def test_flash_attention_moves_what_standard_attention_moves_less_the_scores():
    one = {
        "q_len": 1024,
        "kv_len": 1024,
        "q_heads": 16,
        "head_dim": 64,
        "batch": 64,
        "causal": False,
    }
    flash, standard = (rc.Attention(**one, variant=v) for v in ("flash", "standard"))
    scores = 64 * 16 * 1024 * 1024 * 2
    assert standard.bytes - flash.bytes == 4 * scores  # scores and probabilities, out and in
    assert standard.flops == flash.flops == 4 * 64 * 16 * 1024 * 1024 * 64


def test_flash_attention_reaches_the_published_share_of_an_a100():
    """50 to 73 % of the peak in the forward pass (Dao 2023, arXiv:2307.08691), long sequences."""
    for length in (8192, 16384):
        op = rc.Attention(q_len=length, kv_len=length, q_heads=16, batch=16384 // length)
        p = rc.predict(op, on="a100_sxm")
        assert p.basis == "learned" and 0.50 <= p.utilisation <= 0.73


def test_command_line_takes_fields_and_names_what_is_wrong():
    def run(*words):
        return CliRunner().invoke(app, list(words))

    done = run("predict", "attention", "q_len=1", "kv_len=4096", "q_heads=32", "kv_heads=8",
               "--batch", "16", "--on", "h200_sxm", "--json")  # fmt: skip
    row = json.loads(done.stdout)
    assert done.exit_code == 0 and row["batch"] == 16 and row["time_s"] > row["bound_s"]
    for words, told in (
        (["attention", "q_len=4", "kv_len=4", "q_heads=3", "kv_heads=2"], "attention.q_heads"),
        (["attention", "q_len=4", "kvlen=4"], "kv_len"),
        (["attention", "q_len=4"], "kv_len, q_heads not given"),
        (["atention", "q_len=4"], "attention"),
        (["moe", "num_tokens=4", "hidden=64", "inter=64", "experts=2", "top_k=4"], "experts"),
    ):
        done = run("predict", *words, "--on", "h200_sxm")
        assert done.exit_code == 2 and told in done.stderr, done.stderr
    shown = json.loads(run("ops", "attention", "--json").stdout)
    assert {"field", "default", "allowed", "what"} <= set(shown["fields"][0])


def test_ops_are_values():
    a = rc.Attention(q_len=8, kv_len=8, q_heads=2)
    assert isinstance(a, Op) and hash(a) == hash(rc.Attention(q_len=8, kv_len=8, q_heads=2))
