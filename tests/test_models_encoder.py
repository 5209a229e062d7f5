"""Encoders, convolutional networks, vision-language models: published sizes, work, image tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ridgecast.errors import InfeasibleError, SpecError, UnsupportedError
from ridgecast.models import Call, Layout, Network, Tokens
from ridgecast.models.convnet import ConvNet
from ridgecast.models.encoder import Encoder, TwoTowers
from ridgecast.models.encoder_configs import encoder
from ridgecast.models.image_tokens import AnyResolution, DynamicPatches, Tiles
from ridgecast.models.registry import config_of, get, load, names
from ridgecast.models.vision_language import VisionLanguage, image_tokens
from ridgecast.models.vision_language_configs import vision_language
from ridgecast.ops import op_class

SHIPPED = [
    n for n in names() if config_of(n).get("ridgecast_family") in ("encoder", "vision_language")
]
PRODUCTS = ("gemm", "attention", "convolution")
ONE = Layout()


def flops(calls: Sequence[Call], ops: Sequence[str] = PRODUCTS) -> float:
    """Operations of matrix products of these calls."""
    return sum(op_class(c.op)(**c.fields).flops * c.count for c in calls if c.op in ops)


def images_of(net: Network, images: float = 1.0) -> list[Tokens]:
    if isinstance(net, Encoder):
        return [net.passes(images)]
    return [Tokens(images)]


def vlm(name: str) -> VisionLanguage:
    found = get(name)
    assert isinstance(found, VisionLanguage)
    return found


def cnn(name: str) -> ConvNet:
    found = get(name)
    assert isinstance(found, ConvNet)
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_parameters_are_the_published_ones(name: str):
    published = config_of(name).get("_published_parameters")
    if published is None:
        pytest.skip("no exact count is published")
    assert get(name).parameters == pytest.approx(published, rel=1e-4)


def test_enough_are_shipped():
    assert len(SHIPPED) >= 30


# Multiply-adds of an image at the network's own resolution, in 1e9: torchvision's model pages
# (vit_*, swin_*, resnet*, efficientnet_b0), pycls's model zoo (regnet*).
@pytest.mark.parametrize(
    ("name", "gmacs"),
    [("resnet-18", 1.81), ("resnet-50", 4.09), ("resnet-101", 7.80), ("resnet-152", 11.51),
     ("efficientnet-b0", 0.39), ("regnetx-4gf", 3.97), ("regnety-4gf", 3.98), ("vit-b-16", 17.56),
     ("vit-b-32", 4.41), ("vit-l-16", 61.55), ("vit-h-14", 167.29), ("deit-s", 4.6),
     ("swin-t", 4.49), ("swin-s", 8.74), ("swin-b", 15.43)],
)  # fmt: skip
def test_operations_are_the_published_ones(name: str, gmacs: float):
    net = get(name)
    assert flops(net.calls(images_of(net), ONE)) / 2e9 == pytest.approx(gmacs, rel=0.012)


def test_clip_has_the_published_operations():
    clip = get("clip-vit-l-14")  # OpenCLIP's table: 162.03 GFLOP an image, 13.30 a text
    assert isinstance(clip, TwoTowers)
    vision, text = clip.vision.passes(), Tokens(1.0, 77.0, 77.0)
    assert flops(clip.calls([vision], ONE)) == pytest.approx(162.03e9, rel=0.005)
    assert flops(clip.calls([Tokens(0.0, 257.0, 257.0), text], ONE)) == pytest.approx(
        13.3e9, rel=0.02
    )


def test_bert_on_512_tokens_by_hand():
    layer = 2 * 512 * (4 * 768 * 768 + 2 * 768 * 3072) + 4 * 512 * 512 * 768
    calls = get("bert-base").calls([Tokens(1.0, 512.0, 512.0)], ONE)
    assert flops(calls) == 12 * layer + 2 * 768 * 768  # and the pooler
    assert len(calls) <= 12


def test_swin_grows_with_the_image_and_vit_with_its_square():
    swin, vit = get("swin-b"), get("vit-b-16")
    assert isinstance(swin, Encoder) and isinstance(vit, Encoder)
    for net, more in ((swin, 4.0), (vit, 16.0)):
        small, large = (
            flops(net.calls([net.passes(1.0, side)], ONE), ("attention",)) for side in (224, 448)
        )
        assert large / small == pytest.approx(more, rel=0.02)


def test_vision_mamba_is_linear_in_tokens_and_scans_both_ways():
    vim = get("vim-s")
    assert isinstance(vim, Encoder)
    calls = vim.calls([vim.passes(8.0)], ONE)
    scans = [c for c in calls if c.op == "selective_scan"]
    assert sum(c.count for c in scans) == 2 * 24
    assert scans[0].fields["length"] == 197 and not vim.caches()
    small, large = (flops(vim.calls([vim.passes(1.0, s)], ONE)) for s in (224, 1248))
    assert large / small == pytest.approx((78 * 78 + 1) / 197, rel=0.01)


# ------------------------------------------------------------------ convolutional networks


# Millions of outputs of convolutions, pycls's model zoo; EfficientNet: arXiv:2103.06877, table 1
@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet-50", 11.1), ("resnet-101", 16.2), ("resnet-152", 22.6), ("regnetx-4gf", 12.2),
     ("regnety-4gf", 12.3), ("efficientnet-b0", 6.7)],
)  # fmt: skip
def test_activations_are_the_published_ones(name: str, millions: float):
    assert cnn(name).activation_count() / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    ("factors", "exponent"),
    [({"width": 2.0}, 0.5), ({"depth": 4.0}, 1.0), ({"resolution": 2.0}, 1.0)],
)
def test_activations_grow_as_the_root_of_the_operations_with_width(
    factors: dict[str, float], exponent: float
):
    net = cnn("regnety-4gf")
    large = net.scaled(**factors)
    s = flops(large.calls([Tokens()], ONE)) / flops(net.calls([Tokens()], ONE))
    assert s == pytest.approx(4.0, rel=0.05)
    # the stem is not repeated: depth falls short of s by its share
    got = large.activation_count() / net.activation_count()
    assert got == pytest.approx(s**exponent, rel=0.17)


def test_fast_scaling_needs_fewer_activations_than_even_scaling():
    net = cnn("regnety-4gf")
    even, fast = net.compound(4.0, 1 / 3), net.compound(4.0, 0.8)
    for large in (even, fast):
        s = flops(large.calls([Tokens()], ONE)) / flops(net.calls([Tokens()], ONE))
        assert s == pytest.approx(4.0, rel=0.05)
    # s^(1 - alpha / 2): arXiv:2103.06877, section 4.3
    assert fast.activation_count() / net.activation_count() == pytest.approx(4**0.6, rel=0.06)
    assert even.activation_count() > 1.3 * fast.activation_count()


def test_unfused_networks_do_the_same_products_in_more_kernels():
    net = cnn("resnet-50")
    eager = replace(net, fused=False)
    assert flops(eager.calls([Tokens(4.0)], ONE)) == flops(net.calls([Tokens(4.0)], ONE))
    kernels = [sum(c.count for c in n.calls([Tokens(4.0)], ONE)) for n in (net, eager)]
    # 53 convolutions and norms, 49 activations, 16 shortcuts; two pools and the classifier
    assert kernels == [53 + 3, 53 * 2 + 49 + 16 + 3]


# ------------------------------------------------------------------ image tokens


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("llava-1.5-7b", (1024, 768, 1), 24 * 24),
        ("llava-1.5-7b", (1024, 768, 8), 8 * 576),
        # whole image, 48 x 48 patches, 48 ends of rows
        ("llava-1.6-mistral-7b", (672, 672, 1), 576 + 48 * 48 + 48),
        # 2 x 2 crops; 1000 x 500 fills 48 x 24 patches of them
        ("llava-1.6-mistral-7b", (1000, 500, 1), 576 + 24 * 48 + 24),
        ("qwen2-vl-7b", (1344, 1008, 1), 48 * 36),
        ("qwen2-vl-7b", (224, 224, 1), 8 * 8),
        ("qwen2-vl-7b", (28, 28, 1), 4),  # at least 56 x 56 pixels
        ("qwen2.5-vl-7b", (1920, 1080, 1), 69 * 39),
        ("qwen2.5-vl-7b", (336, 336, 7), 4 * 12 * 12),  # pairs of frames, the last repeated
        ("qwen3-vl-8b", (1024, 1024, 1), 32 * 32),
        ("internvl2-8b", (448, 448, 1), 256),
        ("internvl2-8b", (896, 448, 1), 3 * 256),  # two tiles and the thumbnail
        ("internvl2-8b", (4000, 3000, 1), 13 * 256),
        ("paligemma-3b", (640, 480, 1), 256),
        ("paligemma-3b-896", (640, 480, 1), 4096),
    ],
)
def test_image_tokens_by_hand(model: str, size: tuple[int, int, int], tokens: int):
    assert image_tokens(model, *size) == tokens


def test_bounds_of_dynamic_resolution_hold():
    rule, rng = DynamicPatches(most=1280 * 28 * 28), np.random.default_rng(5)
    for width, height in rng.integers(30, 5000, (300, 2)):
        plan = rule.plan(int(width), int(height))
        assert 4 <= plan.tokens <= 1280 and plan.patches == 4 * plan.tokens
        assert plan.width % 28 == 0 and plan.height % 28 == 0
    assert DynamicPatches().plan(1280, 720, 1000).tokens <= 16384


def test_tiles_and_crops_stay_within_their_grids():
    rng = np.random.default_rng(6)
    for width, height in rng.integers(30, 5000, (300, 2)):
        assert 1 <= Tiles().plan(int(width), int(height)).crops <= 13
        assert AnyResolution().plan(int(width), int(height)).tokens <= 576 * 5 + 48


# ------------------------------------------------------------------ vision-language models


def test_a_prompt_brings_its_images_along_and_a_decode_step_none():
    net = vlm("llava-1.5-7b")
    assert net.prompt(100) == 100 + 576
    tokens = net.prompt(100)
    both = net.calls([Tokens(2.0, tokens, tokens), Tokens(5.0, 1.0, 900.0)], ONE)
    vision = [c for c in both if c.part.startswith("vision_")]
    alone = net.vision.calls([net.vision.passes(2.0)], ONE)
    assert flops(vision) == flops(alone)
    step = net.calls([Tokens(5.0, 1.0, 900.0)], ONE)
    assert not [c for c in step if c.part.startswith(("vision_", "projector"))]
    text = net.decoder.calls([Tokens(5.0, 1.0, 900.0)], ONE)
    assert flops(step) == flops(text)
    assert net.caches() == net.decoder.caches()


def test_no_images_no_encoder():
    net = vlm("qwen2-vl-7b").with_images(448, 448, images=0)
    calls = net.calls([Tokens(1.0, 64.0, 64.0)], ONE)
    assert not [c for c in calls if c.part.startswith("vision_")]


def test_qwen2_vl_encodes_all_patches_of_both_frames():
    net = vlm("qwen2-vl-7b").with_images(1344, 1008)
    calls = net.calls([Tokens(1.0, 2000.0, 2000.0)], ONE)
    patches = next(c for c in calls if c.part == "vision_patches")
    assert patches.fields == {"m": 96 * 72, "n": 1280, "k": 3 * 2 * 14 * 14}
    last = [c for c in calls if c.part == "projector" and c.op == "gemm"]
    assert [c.fields["m"] for c in last] == [1728, 1728]
    seen = next(c for c in calls if c.part == "vision_attention")
    assert seen.fields["q_len"] == 96 * 72 and seen.fields["batch"] == 1


def test_windows_of_qwen2_5_vl_save_attention():
    old, new = (vlm(n).with_images(1344, 1008) for n in ("qwen2-vl-7b", "qwen2.5-vl-7b"))
    pairs = []
    for net in (old, new):
        calls = [c for c in net.calls([Tokens(1.0, 2000.0, 2000.0)], ONE)
                 if c.part == "vision_attention"]  # fmt: skip
        pairs.append(flops(calls))
    # 28 of 32 layers see 64 instead of 6912 patches
    assert pairs[1] / pairs[0] == pytest.approx((4 + 28 * 64 / 6912) / 32, rel=1e-6)


def test_an_encoder_whose_heads_do_not_divide_is_repeated():
    net = vlm("internvl2-8b")  # 16 heads of the encoder, 32 of the decoder
    group = [Tokens(1.0, 600.0, 600.0)]
    for tp, heads in ((8, 2), (32, 16)):
        calls = net.calls(group, Layout(tp=tp, gpus_per_node=32))
        seen = next(c for c in calls if c.part == "vision_attention")
        assert seen.fields["q_heads"] == heads


@pytest.mark.parametrize("name", ["vit-b-16", "swin-t", "bert-base", "vim-ti", "resnet-18",
                                  "llava-1.5-7b", "qwen2.5-vl-7b"])  # fmt: skip
def test_arrays_give_what_numbers_give(name: str):
    net = get(name)
    batch, q = np.array([1.0, 6.0, 0.0]), np.array([3136.0, 784.0, 784.0])
    columns = net.calls([Tokens(batch, q, q)], Layout(dp=2))
    for i in range(3):
        total = 0.0
        for call in columns:
            count = float(np.broadcast_to(call.count, (3,))[i])
            fields: dict[str, Any] = {
                k: (int(v[i]) if isinstance(v, np.ndarray) else v) for k, v in call.fields.items()
            }
            total += op_class(call.op)(**fields).flops * count if call.op in PRODUCTS else 0.0
        single = net.calls([Tokens(float(batch[i]), float(q[i]), float(q[i]))], Layout(dp=2))
        assert total == pytest.approx(flops(single))
    assert all(np.broadcast_to(c.count, (3,))[2] == 0 for c in columns)


def test_tensor_parallel_encoders_share_heads_and_columns():
    net, group = get("bert-large"), [Tokens(8.0, 256.0, 256.0)]
    one, two = (
        flops([c for c in net.calls(group, Layout(tp=tp)) if c.part != "pooler"]) for tp in (1, 2)
    )
    assert two == one / 2
    sums = [c for c in net.calls(group, Layout(tp=2)) if c.op == "collective"]
    assert sum(c.count for c in sums) == 2 * 24


# ------------------------------------------------------------------ bad input


def test_layouts_that_cannot_be():
    with pytest.raises(InfeasibleError, match="heads of the encoder"):
        get("vit-b-16").calls([Tokens(1.0, 197.0, 197.0)], Layout(tp=5))
    with pytest.raises(InfeasibleError, match="use dp"):
        get("resnet-50").calls([Tokens()], Layout(tp=2))
    with pytest.raises(InfeasibleError, match="cp"):
        get("bert-base").calls([Tokens(1.0, 8.0, 8.0)], Layout(cp=2))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("bert-base", {"num_attention_heads": 7}, "num_attention_heads"),
        ("vit-b-16", {"patch_size": 300}, "patch_size"),
        ("swin-b", {"num_heads": [4, 8]}, "num_heads"),
        ("resnet-50", {"depths": "deep"}, "depths"),
        ("regnetx-4gf", {"stages": [{"blocks": 1, "widht": 8}]}, "width"),
        ("regnetx-4gf", {"stages": [{"blocks": 0, "width": 8, "stride": 1}]}, "blocks"),
        ("llava-1.5-7b", {"vision_config": 3}, "vision_config"),
    ],
)
def test_contradictory_configs_name_the_field(name: str, change: dict[str, Any], told: str):
    read = vision_language if "vision_config" in config_of(name) else encoder
    with pytest.raises(SpecError, match=told):
        read({**config_of(name), **change})


def test_questions_without_an_answer():
    with pytest.raises(UnsupportedError, match="nearest: bert"):
        encoder({"model_type": "berd"})
    with pytest.raises(SpecError, match="takes no images"):
        image_tokens("bert-base", 10, 10)
    with pytest.raises(SpecError, match=r"image\.width"):
        image_tokens("llava-1.5-7b", 0, 10)
    with pytest.raises(InfeasibleError, match="crop it"):
        image_tokens("qwen2-vl-7b", 9000, 40)
    with pytest.raises(SpecError, match="no image size"):
        text = get("bert-base")
        assert isinstance(text, Encoder)
        text.tokens(10, 10)
    with pytest.raises(SpecError, match="below one patch"):
        image = get("vit-b-16")
        assert isinstance(image, Encoder)
        image.tokens(10, 10)
    with pytest.raises(SpecError, match="above 0"):
        cnn("resnet-18").scaled(width=0.0)


def test_published_files_are_known_by_their_model_type(tmp_path: Any):
    for name, kind in (("bert-base", Encoder), ("qwen2-vl-7b", VisionLanguage)):
        config = {k: v for k, v in config_of(name).items() if k != "ridgecast_family"}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config))
        assert isinstance(load(path), kind)
