"""The commands models and techniques: lists, details, refusals."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from ridgecast import scenario
from ridgecast.cli.app import app
from ridgecast.cli.modelling import effect_rows
from ridgecast.techniques import get, names


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def document(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_models_list_has_names_first_and_published_sizes():
    rows = document("models")
    assert len(rows) >= 40 and all(next(iter(row)) == "name" for row in rows)
    by = {row["name"]: row for row in rows}
    assert by["llama-3.1-8b"]["parameters"] == 8_030_261_248  # as published
    assert by["llama-3.1-8b"]["weights_bytes"] == 2 * 8_030_261_248
    assert by["mixtral-8x7b"]["kind"] == "decoder, experts"
    assert 12e9 < by["mixtral-8x7b"]["active_parameters"] < 13e9
    assert by["deepseek-v3"]["kind"] == "decoder, experts, latent cache"
    # experts in mxfp4, the rest in bf16: the checkpoint of 13.8 GB
    assert by["gpt-oss-20b"]["weights_bytes"] == pytest.approx(13.8e9, rel=0.01)
    shown = run("models").stdout
    assert "8.03 B" in shown and "decoder, experts" in shown


def test_one_decoder_by_hand():
    row = document("models", "meta-llama/Llama-3.1-8B", "--isl", "1000", "--batch", "4")
    assert row["cache_per_token_bytes"] == 32 * 2 * 8 * 128 * 2  # layers, K and V, heads, size
    assert sum(w["parameters"] for w in row["weights"]) == row["parameters"]
    assert sum(w["share"] for w in row["weights"]) == pytest.approx(1.0)
    decode = {c["part"]: c for c in row["passes"]["decode"]["calls"]}
    assert decode["head"]["work_flops"] == 2 * 4 * 4096 * 128256
    assert decode["qkv"]["count"] == 32 and decode["attention"]["fields"]["kv_len"] == 1000
    prefill = {c["part"]: c for c in row["passes"]["prefill"]["calls"]}
    assert prefill["qkv"]["fields"]["m"] == 4000
    shown = run("models", "llama-3.1-8b").stdout
    assert "131 kB" in shown and "2048 tokens in the cache" in shown


@pytest.mark.parametrize(
    ("name", "giga_flops"),
    # multiply-adds that torchvision's documentation states for its weights, twice: 4.09 and 17.56 G
    [("resnet-50", 8.18), ("vit-b-16", 35.12)],
)
def test_image_networks_have_their_published_operations(name, giga_flops):
    calls = document("models", name)["passes"]["pass"]["calls"]
    assert sum(c["work_flops"] for c in calls) == pytest.approx(giga_flops * 1e9, rel=0.02)


@pytest.mark.parametrize("name", ["sd-1.5", "clip-vit-b-32", "clip-l-text", "gemma-3-1b"])
def test_every_kind_of_network_is_shown(name):
    done = run("models", name)
    assert done.exit_code == 0, done.output
    assert "Operations of the main unit" in done.stdout


def test_config_files_and_wrong_names(tmp_path):
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
              "vocab_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    row = document("models", tmp_path / "config.json")
    # both tables, then of each layer attention (64 x (64 + 2 x 32 + 64)), three products, two norms
    assert row["parameters"] == 2 * 6400 + 2 * (12288 + 3 * 8192 + 128) + 64
    done = run("models", "llama-3-1-8x")
    assert done.exit_code == 2 and "nearest" in done.stderr
    assert run("models", tmp_path / "nothing.onnx").exit_code == 2
    assert run("models", "gpt2", "--batch", "0").exit_code == 2


def test_onnx_files_are_models_too(tmp_path):
    pytest.importorskip("onnx", reason="needs onnx (pip install 'ridgecast[onnx]')")
    from onnx import TensorProto, helper, save

    weight = helper.make_tensor("a.weight", TensorProto.FLOAT, [8, 4], [0.0] * 32)
    nodes = [helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
             helper.make_node("Det", ["h"], ["y"])]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8])
    y = helper.make_empty_tensor_value_info("y")
    path = tmp_path / "small.onnx"
    save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight])), path)
    row = document("models", path, "--batch", "3")
    assert row["kind"] == "graph" and row["parameters"] == 32 and "Det" in row["warnings"][0]
    assert row["passes"]["pass"]["calls"][0]["work_flops"] == 2 * 12 * 8 * 4
    assert "Det" in run("models", path).stderr


def test_techniques_list_and_one():
    rows = document("techniques")
    assert [row["name"] for row in rows] == names()
    assert all(next(iter(row)) == "name" and row["source"] for row in rows)
    row = document("techniques", "KIVI")
    assert {p["parameter"]: p["default"] for p in row["parameters"]} == {
        "bits": 2,
        "group": 32,
        "residual": 32,
    }
    assert {"field": "kv.storage.bits", "neutral": "", "set": "2"} in row["sets"]
    assert "arXiv:2402.02750" in run("techniques", "kivi").stdout
    done = run("techniques", "kivy")
    assert done.exit_code == 2 and "kivi" in done.stderr


def test_every_technique_says_what_it_sets():
    for row in (document("techniques", name) for name in names()):
        assert row["sets"], row["name"]


def test_the_effect_comes_from_scenario(monkeypatch):
    monkeypatch.setattr(scenario, "effect_of", lambda t: [{"throughput": t.id * 9}], raising=False)
    assert effect_rows(get("kivi")) == [{"throughput": "kivi" * 9}]
    assert "what it does to the default case" in run("techniques", "kivi").stdout
    monkeypatch.setattr(scenario, "effect_of", None)
    assert effect_rows(get("kivi")) == []
