"""Generators: counts as published, operations against independent counts, memory, layouts, input.

Operations marked "torch" are those of torch's FlopCounterMode over the modules of diffusers 0.42.1
built from the same configs (2 operations a multiply-add, products and convolutions only).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from ridgecast.errors import InfeasibleError, SpecError, UnsupportedError
from ridgecast.models.diffusion import read
from ridgecast.models.image import Canvas
from ridgecast.models.network import Layout, Tokens
from ridgecast.models.registry import config_of, get, load, names
from ridgecast.ops import op_class

ONE = Layout()


def net(name) -> Any:
    return get(name)


def flops(calls):
    """Operations of matrix products and convolutions, after checking every field."""
    total = 0.0
    for call in calls:
        op = op_class(call.op)(**call.fields)
        if call.op in ("gemm", "convolution", "attention"):
            total += op.flops * call.count
    return total


def own():
    return [n for n in names() if config_of(n).get("ridgecast_family") == "diffusion"]


@pytest.mark.parametrize("name", own())
def test_parameters_are_the_published_ones(name):
    published = config_of(name).get("_published_parameters")
    if published:
        assert net(name).parameters == pytest.approx(published, rel=5e-3)
    if published and published % 1000:  # a count to the last parameter
        assert net(name).parameters == published


def test_autoregressive_sizes_as_rounded_in_their_papers():
    assert round(net("var-d16-transformer").parameters / 1e6) == 310
    assert round(net("var-d30-transformer").parameters / 1e9, 1) == 2.0
    assert round(net("llamagen-xxl").parameters / 1e9, 1) == 1.4  # arXiv:2406.06525, table 1


@pytest.mark.parametrize(
    ("name", "canvas", "torch"),
    [
        ("sd-1.5-unet", Canvas(512, 512), 8.032734e11),
        ("sd-1.5-unet", Canvas(768, 768), 2.148122e12),
        ("sd-2.1-unet", Canvas(768, 768), 2.149106e12),
        ("sdxl-unet", Canvas(1024, 1024), 6.761236e12),
        ("pixart-alpha-transformer", Canvas(1024, 1024), 6.509524e12),
        ("sd3-medium-transformer", Canvas(1024, 1024), 8.904338e12),
        ("flux.1-dev-transformer", Canvas(1024, 1024), 7.438465e13),
        ("wan2.1-1.3b-transformer", Canvas(480, 832, 81), 2.830018e14),
        ("cogvideox-5b-transformer", Canvas(480, 720, 49), 3.321977e14),
        ("sana-1.6b-transformer", Canvas(1024, 1024), 2.966661e12),
        ("sd-vae", Canvas(512, 512), 2.514519e12),
        ("wan2.1-vae", Canvas(480, 832, 81), 2.753522e14),
        ("dc-ae-f32c32", Canvas(1024, 1024), 8.368612e12),
    ],
)
def test_operations_against_torch(name, canvas, torch):
    assert flops(net(name).calls([canvas], ONE)) == pytest.approx(torch, rel=2e-4)


def test_encoders_of_coders_against_torch():
    assert flops(net("sd-vae").turned("encode").calls([Canvas(512, 512)], ONE)) == pytest.approx(
        1.116658e12, rel=1e-5
    )
    wan = net("wan2.1-vae").turned("encode").calls([Canvas(480, 832, 81)], ONE)
    assert flops(wan) == pytest.approx(1.637497e14, rel=1e-5)


def test_unets_of_clips_against_torch():
    # torch's modules project text and step once a frame; here once a sample
    for name, canvas, width, torch in (
        ("animatediff-sd-1.5-unet", Canvas(512, 512, 16), 768, 1.774891e13),
        ("modelscope-t2v-unet", Canvas(256, 256, 16), 1024, 4.887105e12),
    ):
        text = sum(2 * 77 * width * 2 * c * n for c, n in ((320, 5), (640, 5), (1280, 6)))
        ours = flops(net(name).calls([canvas], ONE)) + 15 * text
        assert ours == pytest.approx(torch, rel=2e-4)


def test_attention_over_frames_grows_with_their_square_only():
    def of(frames):
        calls = net("modelscope-t2v-unet").calls([Canvas(256, 256, frames)], ONE)
        return flops(c for c in calls if c.op == "attention" and c.part == "temporal")

    assert of(32) == 4 * of(16)
    calls = net("modelscope-t2v-unet").calls([Canvas(256, 256, 16)], Layout(cp=2))
    over_time = [c for c in calls if c.op == "attention" and c.part == "temporal"]
    assert {c.fields["q_len"] for c in over_time} == {16}  # positions are divided, frames are not


def test_published_multiply_adds():
    # DiT-XL/2 at 256 x 256: 118.6 G multiply-adds, arXiv:2212.09748, table 4 (there "Gflops")
    dit = net("dit-xl-2-transformer")
    assert flops(dit.calls([Canvas(256, 256)], ONE)) / 2e9 == pytest.approx(118.6, abs=0.05)
    # SD 1.5's U-Net: 339 G multiply-adds, which leave out the products inside attention, as tools
    # that count layers do (arXiv:2305.15798)
    calls = net("sd-1.5-unet").calls([Canvas(512, 512)], ONE)
    outside = [c for c in calls if c.op != "attention"]
    assert flops(outside) / 2e9 == pytest.approx(339, abs=0.5)


def test_attention_of_the_unet_by_hand():
    calls = net("sd-1.5-unet").calls([Canvas(512, 512)], ONE)
    own_ = flops(c for c in calls if c.op == "attention" and c.part == "attention")
    levels = ((4096, 320, 5), (1024, 640, 5), (256, 1280, 5), (64, 1280, 1))  # middle: one
    assert own_ == sum(4 * n * n * c * count for n, c, count in levels)


def test_softmax_grows_with_the_square_linear_attention_with_tokens():
    def share(name, side):
        calls = net(name).calls([Canvas(side, side)], ONE)
        return flops(c for c in calls if c.op == "attention" and c.part == "attention")

    assert share("sana-1.6b-transformer", 2048) == 4 * share("sana-1.6b-transformer", 1024)
    assert share("pixart-alpha-transformer", 2048) == 16 * share("pixart-alpha-transformer", 1024)
    sana = [c for c in net("sana-1.6b-transformer").calls([Canvas(1024, 1024)], ONE)
            if c.op == "attention" and c.part == "attention"]  # fmt: skip
    # state of 32 x 32 a head, written and read: 4 operations an element and token
    assert flops(sana) == 20 * 4 * 1024 * 70 * 32 * 32


def test_peak_of_decoding_is_the_widest_layer_with_its_residual():
    # SD: at 512 x 512, upsampled 256 channels in, 256 out; or the block that follows, which holds
    # its input beside norm's input and output: 3 x 256 channels
    vae = net("sd-vae")
    assert vae.activations(Canvas(512, 512), ONE) == 512 * 512 * 3 * 256
    assert vae.activations(Canvas(1024, 512), ONE) == 2 * vae.activations(Canvas(512, 512), ONE)


def test_chunks_bound_the_memory_of_a_clip():
    vae = net("wan2.1-vae")
    peaks = [vae.activations(Canvas(480, 832, f), ONE) for f in (5, 81, 161)]
    assert peaks[0] == peaks[1] == peaks[2]
    whole = net("cogvideox-vae")
    assert whole.activations(Canvas(480, 720, 49), ONE) == whole.activations(
        Canvas(480, 720, 97), ONE
    )
    # four times the frames less the first, which is one: 1 + 20 x 4
    a, b = (flops(vae.calls([Canvas(480, 832, f)], ONE)) for f in (1, 81))
    c = flops(vae.calls([Canvas(480, 832, 5)], ONE))
    assert b == pytest.approx(a + 20 * (c - a))


def test_samples_divide_over_data_parallel_devices():
    unet = net("sd-1.5-unet")
    two = unet.calls([Canvas(512, 512, batch=2)], Layout(dp=2))
    one = unet.calls([Canvas(512, 512)], ONE)
    assert flops(two) == flops(one)
    assert not any(c.op == "collective" for c in two)


def test_context_parallel_unet_gathers_keys_and_sends_halos():
    unet = net("sdxl-unet")
    whole = flops(unet.calls([Canvas(1024, 1024)], ONE))
    calls = unet.calls([Canvas(1024, 1024)], Layout(cp=4))
    # keys and values of the text are projected on each device: 2 x 77 x 2048 x 2 c a block
    text = 2 * 77 * 2048 * 2 * (640 * 10 + 1280 * 60)
    part = flops(c for c in calls if c.op != "collective")
    assert part == pytest.approx((whole - text) / 4 + text, rel=1e-3)
    kinds = {c.fields["kind"] for c in calls if c.op == "collective"}
    assert kinds == {"all_gather", "send_recv"}
    gather = next(c for c in calls if c.part == "attention all_gather")
    assert gather.fields["bytes"] == 2 * 64 * 64 * 2 * 640  # keys and values of all positions


def test_tensor_parallel_transformer():
    flux, canvas = net("flux.1-dev-transformer"), Canvas(1024, 1024)
    calls = flux.calls([canvas], Layout(tp=4))
    sums = [c for c in calls if c.op == "collective"]
    assert {c.fields["kind"] for c in sums} == {"all_reduce"}
    assert sum(c.count for c in sums) == 19 * 4 + 38  # two streams, out and feed-forward; single
    part = flops(c for c in calls if c.op != "collective")
    assert part == pytest.approx(flops(flux.calls([canvas], ONE)) / 4, rel=0.01)
    alltoall = flux.calls([canvas], Layout(cp=8))
    assert "all_to_all" in {c.fields.get("kind") for c in alltoall}
    with pytest.raises(InfeasibleError, match="attention heads"):
        flux.calls([canvas], Layout(tp=7))
    with pytest.raises(InfeasibleError, match="dp"):
        net("sd-1.5-unet").calls([canvas], Layout(tp=2))
    for empty in (net("sd-1.5-unet"), net("sd-1.5")):
        with pytest.raises(InfeasibleError, match="dp"):
            empty.calls((), Layout(tp=2))
    with pytest.raises(InfeasibleError, match="experts"):
        flux.calls([canvas], Layout(tp=2, ep=2))


def test_every_layout_gives_fields_that_operations_take():
    canvas = Canvas(np.array([480, 720]), np.array([832, 1280]), 81, 1)
    for name in ("wan2.1-1.3b-transformer", "sana-video-2b-transformer", "wan2.1-vae"):
        for layout in (ONE, Layout(cp=2), Layout(dp=2)):
            for call in net(name).calls([canvas], layout):
                columns = {
                    k: v if isinstance(v, str | bool) else np.broadcast_to(v, 2).astype(float)
                    for k, v in call.fields.items()
                }
                if call.op != "gemm":
                    _, bad, why = op_class(call.op).of_columns(columns, 2)
                    assert not bad.any(), (call, why)


def test_arrays_of_points_equal_points():
    for name in ("sd-1.5-unet", "wan2.1-1.3b-transformer"):
        both = net(name).activations(Canvas(np.array([512, 768]), 512, 5), ONE)
        each = [net(name).activations(Canvas(h, 512, 5), ONE) for h in (512, 768)]
        assert list(np.asarray(both)) == each


def test_clip_made_in_chunks_over_a_cache():
    chunked, whole = net("self-forcing-1.3b-transformer"), net("wan2.1-1.3b-transformer")
    assert whole.caches() == ()
    (cache,) = chunked.caches()
    # keys and values of 30 layers of 1536: 21 latent frames of 30 x 52 tokens in bf16
    assert cache.elements(21 * 30 * 52) * 2 == 30 * 2 * 1536 * 32760 * 2
    canvas = Canvas(480, 832, 81)
    calls = chunked.calls([canvas], ONE)
    own_ = [c for c in calls if c.op == "attention" and c.part == "attention"]
    assert sorted(c.fields["kv_len"] for c in own_) == [1560 * 3 * i for i in range(1, 8)]
    assert sum(c.fields["q_len"] * c.count for c in own_) == 30 * 32760
    # half the pairs and half a chunk's diagonal
    full = flops(c for c in whole.calls([canvas], ONE) if c.part == "attention")
    assert flops(own_) == pytest.approx(full * (7 + 1) / (2 * 7))


def test_linear_attention_keeps_a_state_of_fixed_size():
    config = {**config_of("sana-video-2b-transformer"), "_chunk_frames": 3}
    (cache,) = read(config).caches()
    # 20 layers of 20 heads: a state of 112 x 112 and the sum of keys
    assert cache.kind == "state"
    assert cache.elements(1e6) == cache.elements(10) == 20 * 20 * 112 * 113


def test_next_scale_generation_sees_all_scales_before():
    var = net("var-d16-transformer")
    calls = [c for c in var.calls([Canvas(256, 256)], ONE) if c.op == "attention"]
    assert sum(c.fields["q_len"] * c.count for c in calls) == 680 * 16
    assert max(c.fields["kv_len"] for c in calls) == 680
    assert var.caches()[0].per_token == 2 * 1024


def test_pipeline_multiplies_steps_and_guidance():
    sd, fast = net("sd-1.5"), net("instaflow-0.9b")
    unet, vae = flops(net("sd-1.5-unet").calls([sd.canvas], ONE)), net("sd-vae")
    decode = flops(vae.calls([sd.canvas], ONE))

    def text(network):
        stage = network.stage("text")
        return flops(stage.calls(network.canvas, ONE))

    assert flops(sd.calls([sd.canvas], ONE)) == pytest.approx(100 * unet + decode + text(sd))
    assert flops(fast.calls([fast.canvas], ONE)) == pytest.approx(unet + decode + text(fast))
    assert sd.parameters == 859520964 + 123060480 + 83653863
    assert {c.phase for c in sd.calls([sd.canvas], ONE)} == {"text", "denoiser", "decoder"}
    ten = sd.with_steps(10, guidance=1)
    assert ten.stage("denoiser").passes == 10 and ten.stage("denoiser").samples == 1
    assert sd.with_steps(25).stage("denoiser").passes == 25
    assert sd.activations(sd.canvas, ONE) == vae.activations(sd.canvas, ONE)


def test_text_encoder_by_hand():
    t5 = net("t5-v1.1-xxl-encoder")
    calls = t5.calls([Tokens(1, 512, 512)], ONE)
    tokens, h, f = 512, 4096, 10240
    products = 2 * tokens * (4 * h * h + 3 * h * f) + 4 * tokens * tokens * h
    assert flops(calls) == 24 * products
    cut = t5.calls([Tokens(1, 512, 512)], Layout(tp=8))
    assert flops(c for c in cut if c.op != "collective") * 8 == flops(calls)
    assert sum(c.count for c in cut if c.op == "collective") == 48
    with pytest.raises(InfeasibleError):
        t5.calls([Tokens(1, 512, 512)], Layout(tp=3))


def test_a_config_of_diffusers_is_read_from_its_folder(tmp_path):
    config = config_of("wan2.1-1.3b-transformer")
    config.pop("ridgecast_family")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path).parameters == 1418996800


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "UNet2DConditonModel"}, "UNet2DConditionModel"),
        ({"_class_name": None}, "_class_name: not given"),
        ({"cross_attention_dim": "wide"}, "cross_attention_dim"),
        ({"cross_attention_dim": None}, "cross_attention_dim"),
        ({"block_out_channels": [320, 0]}, "block_out_channels"),
        ({"attention_head_dim": [5, 10]}, "one a level"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types"),
    ],
)
def test_bad_configs_say_what_to_change(change, told):
    config = {**config_of("sd-1.5-unet"), **change}
    with pytest.raises((SpecError, UnsupportedError), match=told):
        read(config)


def test_bad_pipelines_and_canvases():
    unet = net("sd-1.5-unet")
    with pytest.raises(SpecError, match="nearest: 448, 512"):
        unet.calls([Canvas(500, 512)], ONE)
    with pytest.raises(SpecError, match="needs a Canvas"):
        unet.calls([Tokens(1, 77, 77)], ONE)
    with pytest.raises(SpecError, match="needs a Canvas"):
        unet.activations(77, ONE)
    with pytest.raises(SpecError, match="1 \\+ a multiple of 4"):
        net("wan2.1-vae").calls([Canvas(480, 832, 80)], ONE)
    for bad in ({"height": 0}, {"frames": 2.5}, {"batch": math.nan}):
        with pytest.raises(SpecError, match=next(iter(bad))):
            Canvas(**bad)
    good = config_of("sd-1.5")
    with pytest.raises(SpecError, match=r"stages\[0\].network"):
        read({**good, "stages": [{"name": "text", "network": 3}]})
    with pytest.raises(SpecError, match="hieght"):
        read({**good, "canvas": {"hieght": 512}})
    with pytest.raises(SpecError, match="guidance"):
        read({**good, "guidance": 3})
    with pytest.raises(SpecError, match="decoder"):
        net("sd-1.5").stage("decoderr")
