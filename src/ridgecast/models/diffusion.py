"""From a config.json of a generator, as Hugging Face diffusers writes it, to a network.

Owns the readers of U-Nets, diffusion transformers, coders and pipelines, by `_class_name`. Shipped
files say "ridgecast_family": "diffusion". A pipeline's file names its stages; each stage's network
is a shipped name or a config of its own. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any

from ..errors import SpecError, UnsupportedError, unknown_name
from .dit import Dit
from .fields import Fields
from .image import Canvas
from .network import Network
from .pipeline import Pipeline, Stage
from .text_encoder import clip_text, gemma2, t5
from .unet import UNet
from .vae import Vae

__all__ = ["CLASSES", "read"]

VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # sides of the token maps, arXiv:2404.02905, app. A


def read(config: Mapping[str, Any], name: str = "") -> Network:
    """Build the network of a generator's config.

    Raises UnsupportedError for a class without a reader (nearest three named) and SpecError, with
    the field path, for values that are missing, wrong or contradict each other.
    """
    if not isinstance(config, Mapping):
        raise SpecError(f"config: got {type(config).__name__}, need an object of fields")
    f = Fields(config)
    kind = f.word("_class_name", "model_type")
    if not kind:
        raise SpecError(f"config._class_name: not given; need one of {', '.join(CLASSES)}")
    if kind not in CLASSES:
        raise UnsupportedError(unknown_name("class", kind, CLASSES))
    made = CLASSES[kind](f)
    return replace(made, name=name or kind, title=f.word("_title", default=name or kind),
                   source=f.word("_source"),
                   native_dtype=f.word("_dtype", default="bf16"))  # fmt: skip


def _row(f: Fields, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
    """Read a list of whole numbers."""
    value = f.data.get(name, default)
    good = isinstance(value, list | tuple) and value
    if not good or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value):
        raise SpecError(f"{f.path}.{name}: got {value!r}, need a list of whole numbers above 0")
    return tuple(value)


def _levels(f: Fields, name: str, levels: int, default: int) -> tuple[int, ...]:
    """Read one whole number for all levels, or a list with one a level."""
    value = f.data.get(name, default)
    row = (value,) * levels if isinstance(value, int) else _row(f, name)
    if len(row) != levels:
        raise SpecError(f"{f.path}.{name}: got {len(row)} entries, need one a level: {levels}")
    return row


def _unet(f: Fields) -> UNet:
    widths = _row(f, "block_out_channels", (320, 640, 1280, 1280))
    n = len(widths)
    kind = {"UNetMotionModel": "motion", "UNet3DConditionModel": "full"}
    temporal = kind.get(f.word("_class_name"), "")
    known = {"motion": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
             "full": ("CrossAttnDownBlock3D", "DownBlock3D"),
             "": ("CrossAttnDownBlock2D", "DownBlock2D")}[temporal]  # fmt: skip
    down = f.data.get("down_block_types") or [known[0]] * (n - 1) + [known[1]]
    if not isinstance(down, list) or len(down) != n:
        raise SpecError(f"{f.path}.down_block_types: got {down!r}, need one a level: {n}")
    for word in down:
        if word not in known:
            raise UnsupportedError(unknown_name(f"{f.path}.down_block_types", str(word), known))
    depths = _levels(f, "transformer_layers_per_block", n, 1)
    # diffusers' field means heads a level for pictures, the size of a head for clips ("full")
    heads = _levels(f, "attention_head_dim", n, 64 if temporal == "full" else 8)
    if temporal == "full":
        heads = tuple(w // size for w, size in zip(widths, heads, strict=True))
    vector = f.whole("projection_class_embeddings_input_dim", default=0, low=0)
    return UNet(
        "unet", widths, tuple(d * w.startswith("Cross") for d, w in zip(depths, down, strict=True)),
        heads, f.whole("cross_attention_dim"), depths[-1], f.whole("layers_per_block", default=2),
        f.whole("in_channels", default=4), vector,
        linear_projection=f.flag("use_linear_projection"),
        text_tokens=f.whole("_text_tokens", default=77), multiple=8 * 2 ** (n - 1),
        temporal=temporal, motion_heads=f.whole("motion_num_attention_heads", default=8),
    )  # fmt: skip


def _width(f: Fields) -> tuple[int, int]:
    """Hidden size and heads."""
    heads = f.whole("num_attention_heads")
    return heads * f.whole("attention_head_dim"), heads


def _dit(f: Fields) -> Dit:
    h, heads = _width(f)
    z, patch = f.whole("in_channels", default=4), f.whole("patch_size", default=2)
    side = f.whole("sample_size", default=32) // patch
    return Dit(
        "dit", h, heads, (("plain", f.whole("num_layers")),), 4 * h, z,
        f.whole("out_channels", default=2 * z), (1, patch, patch), vectors=((256, h),),
        labels=f.whole("num_classes", default=1000) + 1,  # and the class of no class, for guidance
        buffers=side * side * h, multiple=8 * patch, shards=True,
    )  # fmt: skip


def _pixart(f: Fields) -> Dit:
    h, heads = _width(f)
    z, patch = f.whole("in_channels", default=4), f.whole("patch_size", default=2)
    sizes = ((256, h // 3),) * 2 if f.whole("sample_size", default=128) == 128 else ()
    return Dit(
        "pixart", h, heads, (("cross", f.whole("num_layers")),), 4 * h, z,
        f.whole("out_channels", default=2 * z), (1, patch, patch), ((256, h), *sizes), 6 * h,
        (f.whole("caption_channels", default=4096), h, h), extra=2 * h, final_modulation=False,
        text_tokens=f.whole("_text_tokens", default=120), multiple=8 * patch, shards=True,
    )  # fmt: skip


def _sd3(f: Fields) -> Dit:
    h, heads = _width(f)
    z, patch = f.whole("in_channels", default=16), f.whole("patch_size", default=2)
    n = f.whole("num_layers")
    return Dit(
        "sd3", h, heads, (("joint", n - 1), ("joint_last", 1)), 4 * h, z,
        f.whole("out_channels", default=z), (1, patch, patch),
        ((256, h), (f.whole("pooled_projection_dim", default=2048), h)), 0,
        (f.whole("joint_attention_dim", default=4096), h),
        text_tokens=f.whole("_text_tokens", default=333), multiple=8 * patch, shards=True,
    )  # fmt: skip


def _flux(f: Fields) -> Dit:
    h, heads = _width(f)
    guided = ((256, h),) * (2 if f.flag("guidance_embeds") else 1)
    z = f.whole("in_channels", default=64) // 4  # patches of 2 x 2 are made before the network
    blocks = (("joint", f.whole("num_layers")), ("single", f.whole("num_single_layers")))
    return Dit(
        "flux", h, heads, blocks, 4 * h, z, z, (1, 2, 2),
        (*guided, (f.whole("pooled_projection_dim", default=768), h)), 0,
        (f.whole("joint_attention_dim", default=4096), h), qk=2 * (h // heads),
        text_tokens=f.whole("_text_tokens", default=512), multiple=16, shards=True,
    )  # fmt: skip


def _wan(f: Fields) -> Dit:
    h, heads = _width(f)
    z, patch = f.whole("in_channels", default=16), _row(f, "patch_size", (1, 2, 2))
    return Dit(
        "wan", h, heads, (("cross", f.whole("num_layers")),), f.whole("ffn_dim"), z,
        f.whole("out_channels", default=z), (patch[0], patch[1], patch[2]), ((256, h),), 6 * h,
        (f.whole("text_dim", default=4096), h, h), extra=2 * h, qk=2 * h, cross_qk=2 * h,
        affine=2, final_modulation=False, chunk=f.whole("_chunk_frames", default=0, low=0),
        text_tokens=f.whole("_text_tokens", default=512), time=4, multiple=8 * patch[1],
        shards=True,
    )  # fmt: skip


def _cogvideox(f: Fields) -> Dit:
    h, heads = _width(f)
    z, patch = f.whole("in_channels", default=16), f.whole("patch_size", default=2)
    return Dit(
        "cogvideox", h, heads, (("merged", f.whole("num_layers")),), 4 * h, z,
        f.whole("out_channels", default=z), (1, patch, patch),
        ((h, f.whole("time_embed_dim", default=512)),), 0,
        (f.whole("text_embed_dim", default=4096), h), extra=4 * h, qk=4 * (h // heads), affine=2,
        text_tokens=f.whole("max_text_seq_length", default=226), time=4, multiple=8 * patch,
        shards=True,
    )  # fmt: skip


def _sana(f: Fields) -> Dit:
    h, heads = _width(f)
    video = f.word("_class_name") == "SanaVideoTransformer3DModel"
    z, ratio = f.whole("in_channels", default=32), f.data.get("mlp_ratio", 2.5)
    if not isinstance(ratio, int | float) or not ratio > 0:
        raise SpecError(f"{f.path}.mlp_ratio: got {ratio!r}, need a number above 0")
    patch = _row(f, "patch_size", (1, 2, 2)) if video else (1, *(f.whole("patch_size"),) * 2)
    space = f.whole("_space", default=8 if video else 32)
    normed = 2 * h if f.word("qk_norm") else 0
    return Dit(
        "sana", h, f.whole("num_cross_attention_heads"), (("cross", f.whole("num_layers")),),
        int(ratio * h), z, f.whole("out_channels", default=z), (patch[0], patch[1], patch[2]),
        ((256, h),), 6 * h, (f.whole("caption_channels", default=2304), h, h), extra=3 * h,
        qk=normed, cross_qk=normed, final_modulation=False, attention="linear", linear_heads=heads,
        qkv_bias=False, mix="time" if video else "space", time=4 if video else 1, space=space,
        chunk=f.whole("_chunk_frames", default=0, low=0),
        text_tokens=f.whole("_text_tokens", default=300), multiple=space * patch[1], shards=True,
    )  # fmt: skip


def _var(f: Fields) -> Dit:
    """Next-scale prediction: width 64 a head, a head a layer (arXiv:2404.02905, section 4)."""
    depth = f.whole("depth")
    h, scales = 64 * depth, _row(f, "patch_nums", VAR_SCALES)
    tokens = sum(s * s for s in scales)
    # positions, scales and the start; queries and values alone have shifts, heads a temperature
    extra = h * (tokens + len(scales) + 1) + depth * (depth - h)
    return Dit(
        "var", h, depth, (("plain", depth),), 4 * h, f.whole("Cvae", default=32),
        f.whole("vocab_size", default=4096), (1, 1, 1),
        labels=f.whole("num_classes", default=1000) + 1, extra=float(extra), scales=scales,
        space=16, multiple=16, shards=True,
    )  # fmt: skip


def _kl(f: Fields) -> Vae:
    widths = _row(f, "block_out_channels", (128, 256, 512, 512))
    blocks = f.whole("layers_per_block", default=2)
    shrink = 2 ** (len(widths) - 1)
    return Vae(
        "vae", "kl", widths, f.whole("latent_channels", default=4), (blocks,) * len(widths),
        quant=f.flag("use_quant_conv", True), space=shrink, multiple=shrink,
    )  # fmt: skip


def _vq(f: Fields) -> Vae:
    widths = _row(f, "block_out_channels")
    blocks, shrink = f.whole("layers_per_block", default=2), 2 ** (len(widths) - 1)
    return Vae(
        "vae", "kl", widths, f.whole("latent_channels"), (blocks,) * len(widths),
        codes=f.whole("num_vq_embeddings"), space=shrink, multiple=shrink,
    )  # fmt: skip


def _wan_vae(f: Fields) -> Vae:
    base, grow = f.whole("base_dim", default=96), _row(f, "dim_mult", (1, 2, 4, 4))
    blocks = f.whole("num_res_blocks", default=2)
    return Vae(
        "vae", "wan", tuple(base * g for g in grow), f.whole("z_dim", default=16),
        (blocks,) * len(grow), chunk=1, time=4,
    )  # fmt: skip


def _cog_vae(f: Fields) -> Vae:
    widths, blocks = _row(f, "block_out_channels"), f.whole("layers_per_block", default=3)
    return Vae(
        "vae", "cogvideox", widths, f.whole("latent_channels", default=16),
        (blocks,) * len(widths), chunk=2, time=f.whole("temporal_compression_ratio", default=4),
    )  # fmt: skip


def _dc(f: Fields) -> Vae:
    widths = _row(f, "encoder_block_out_channels")
    shrink = 2 ** (len(widths) - 1)
    return Vae(
        "vae", "dc", widths, f.whole("latent_channels"), _row(f, "encoder_layers_per_block"),
        _row(f, "decoder_layers_per_block"), space=shrink, multiple=shrink,
    )  # fmt: skip


def _pipeline(f: Fields) -> Pipeline:
    """Stages in order; `passes` of the denoiser follow from steps and guidance where not given."""
    steps, guidance = f.whole("steps"), f.whole("guidance", default=1)
    listed = f.data.get("stages")
    if not isinstance(listed, list) or not listed:
        raise SpecError(f"{f.path}.stages: got {listed!r}, need a list of stages")
    stages: list[Stage] = []
    for i, entry in enumerate(listed):
        if not isinstance(entry, Mapping):
            raise SpecError(f"{f.path}.stages[{i}]: got {entry!r}, need an object")
        s = Fields(entry, f"{f.path}.stages[{i}]")
        name, samples = s.word("name"), s.whole("samples", default=1)
        default = steps * guidance // samples if name == "denoiser" else 1
        stages.append(Stage(name, _network(s), float(s.whole("passes", default=default)),
                            s.flag("offloadable", True), samples,
                            s.whole("tokens", default=0, low=0)))  # fmt: skip
    return Pipeline("pipeline", tuple(stages), steps, guidance, _canvas(f))


def _network(s: Fields) -> Network:
    given = s.data.get("network")
    if isinstance(given, Mapping):
        return read(given, s.word("name"))
    if isinstance(given, str) and given:
        from .registry import get  # the registry imports this module's reader: here, not above

        return get(given)
    raise SpecError(f"{s.path}.network: got {given!r}, need the name of a model or a config")


def _canvas(f: Fields) -> Canvas:
    given = f.data.get("canvas", {})
    allowed = [x.name for x in fields_of(Canvas)]
    if not isinstance(given, Mapping):
        raise SpecError(f"{f.path}.canvas: got {given!r}, need an object of {', '.join(allowed)}")
    for key in given:
        if key not in allowed:
            raise SpecError(unknown_name(f"{f.path}.canvas", str(key), allowed))
    return Canvas(**given)


CLASSES: dict[str, Callable[[Fields], Network]] = {
    "UNet2DConditionModel": _unet,
    "UNetMotionModel": _unet,
    "UNet3DConditionModel": _unet,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "WanTransformer3DModel": _wan,
    "CogVideoXTransformer3DModel": _cogvideox,
    "SanaTransformer2DModel": _sana,
    "SanaVideoTransformer3DModel": _sana,
    "VAR": _var,
    "AutoencoderKL": _kl,
    "VQVAE": _vq,
    "AutoencoderKLWan": _wan_vae,
    "AutoencoderKLCogVideoX": _cog_vae,
    "AutoencoderDC": _dc,
    "t5": t5,
    "umt5": t5,
    "clip_text_model": clip_text,
    "gemma2": gemma2,
    "Pipeline": _pipeline,
}
"""Readers by the class that a config names."""
