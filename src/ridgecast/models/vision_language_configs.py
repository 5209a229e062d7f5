"""Readers of vision-language configs: LLaVA, Qwen2-VL to Qwen3-VL, InternVL, PaliGemma.

From a Hugging Face config.json to a `VisionLanguage`. The language model is read by `config`, as
if it stood alone; defaults are those of the published configuration classes. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..errors import SpecError, UnsupportedError, unknown_name
from .config import formats_in, read_config
from .encoder import Encoder
from .encoder_configs import clip_vision, siglip_vision
from .encoder_parts import AttentionStage, Dense, PatchStem
from .fields import Fields
from .image_tokens import AnyResolution, DynamicPatches, FixedPatches, Tiles
from .transformer import Decoder
from .vision_language import Projector, VisionLanguage

__all__ = ["READERS", "vision_language"]

# LLaVA's configs name a Llama and leave out what equals the class's defaults
_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_MISTRAL = {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8}


def vision_language(config: Mapping[str, Any], name: str = "") -> VisionLanguage:
    """Build the vision-language model of a config.json.

    Raises UnsupportedError for a model_type without a reader, SpecError for missing or wrong
    fields, with their path.
    """
    kind = str(config.get("model_type") or "")
    if kind not in READERS:
        raise UnsupportedError(unknown_name("vision-language model_type", kind, READERS))
    made = READERS[kind](Fields(config))
    source = str(config.get("_source") or config.get("_name_or_path") or "")
    title = str(config.get("_title") or name or kind)
    return replace(
        made, name=name or kind, title=title, source=source, native_dtype=formats_in(config)[0]
    )


def _inner(f: Fields, name: str) -> Fields:
    given = f.data.get(name)
    if not isinstance(given, Mapping):
        raise SpecError(f"{f.path}.{name}: got {given!r}, need an object of fields")
    return Fields(given, f"{f.path}.{name}")


def _decoder(config: Mapping[str, Any]) -> Decoder:
    found = read_config(config)
    if not isinstance(found, Decoder):
        raise SpecError(f"config: language model {found.name} is no decoder")
    return found


def _llama(f: Fields) -> Decoder:
    text = _inner(f, "text_config")
    kind = text.word("model_type", default="llama")
    defaults = {"llama": _LLAMA, "mistral": _MISTRAL}.get(kind, {})
    return _decoder({**f.data, "text_config": {**defaults, **text.data}})


def _two_layers(k: int, n: int, bias: bool = True) -> tuple[Dense, ...]:
    return (Dense("projector", k, n, bias), Dense("projector", n, n, bias))


def llava(f: Fields) -> VisionLanguage:
    """LLaVA-1.5 and 1.6: CLIP's image tower, two linear layers (arXiv:2310.03744)."""
    vision, text = clip_vision(_inner(f, "vision_config")), _llama(f)
    stem = vision.stem
    if not isinstance(stem, PatchStem):
        raise SpecError(f"{f.path}.vision_config: no image encoder")
    layers = _two_layers(stem.hidden, text.hidden)
    if f.word("model_type") == "llava_next":
        pins = f.data.get("image_grid_pinpoints") or []
        good = isinstance(pins, list) and all(
            isinstance(p, list)
            and len(p) == 2
            and all(isinstance(x, int) for x in p)
            and min(p) >= stem.image
            for p in pins
        )
        f.need("image_grid_pinpoints", good, f"need pairs of whole numbers from {stem.image}")
        grids = tuple((int(w) // stem.image, int(h) // stem.image) for h, w in pins)
        rule = AnyResolution(stem.image, stem.patch, *([grids] if grids else []))
    else:
        rule = FixedPatches(stem.image, stem.patch)
    return VisionLanguage(
        "",
        vision=_named(vision),
        projectors=(Projector(layers),),
        decoder=text,
        rule=rule,
        width=stem.image,
        height=stem.image,
    )


def _named(vision: Encoder) -> Encoder:
    return replace(vision, name="vision")


def qwen2_vl(f: Fields) -> VisionLanguage:
    """Qwen2-VL: patches of two frames, 2 x 2 of them merged to a token (arXiv:2409.12191)."""
    v, text = _inner(f, "vision_config"), _decoder(f.data)
    hidden, merge = v.whole("embed_dim", default=1280), v.whole("spatial_merge_size", default=2)
    stage = AttentionStage(
        v.whole("depth", default=32),
        hidden,
        v.whole("num_heads", default=16),
        v.whole("mlp_ratio", default=4) * hidden,
    )
    wide = hidden * merge**2
    layers = (Dense("projector", wide, wide), Dense("projector", wide, text.hidden))
    return _dynamic(v, (stage,), text, merge, Projector(layers, "layer", hidden))


def _dynamic(
    v: Fields,
    stages: tuple[AttentionStage, ...],
    text: Decoder,
    merge: int,
    *between: Projector,
    bias: bool = False,
    positions: int = 0,
    patch: int = 14,
    **rule: int,
) -> VisionLanguage:
    """Put together a model that keeps the image's resolution."""
    patch, pair = v.whole("patch_size", default=patch), v.whole("temporal_patch_size", default=2)
    stem = PatchStem(
        patch,
        stages[0].hidden,
        channels=v.whole("in_channels", "in_chans", default=3),
        frames=pair,
        prefix=0,
        positions=positions,
        bias=bias,
    )
    vision = Encoder("vision", stem, stages, final_norm="")
    side = patch * merge * 32  # 1024 tokens
    return VisionLanguage(
        "",
        vision=vision,
        projectors=between,
        decoder=text,
        width=side,
        height=side,
        rule=DynamicPatches(patch, merge, pair, **rule),
    )


def qwen2_5_vl(f: Fields) -> VisionLanguage:
    """Qwen2.5-VL: most layers see windows of 112 x 112 pixels (arXiv:2502.13923, section 2.1)."""
    v, text = _inner(f, "vision_config"), _decoder(f.data)
    hidden, merge = v.whole("hidden_size", default=1280), v.whole("spatial_merge_size", default=2)
    full = v.data.get("fullatt_block_indexes", [7, 15, 23, 31])
    depth, patch = v.whole("depth", default=32), v.whole("patch_size", default=14)
    v.need(
        "fullatt_block_indexes",
        isinstance(full, list) and len(full) <= depth,
        f"need a list of at most {depth} layers",
    )
    window = (v.whole("window_size", default=112) // patch) ** 2
    local = AttentionStage(
        depth - len(full),
        hidden,
        v.whole("num_heads", default=16),
        v.whole("intermediate_size", default=3420),
        window=window,
        gated=True,
        norm="rms",
        activation="silu",
    )
    stages = tuple(s for s in (local, replace(local, layers=len(full), window=0)) if s.layers)
    wide = hidden * merge**2
    layers = (Dense("projector", wide, wide), Dense("projector", wide, text.hidden))
    return _dynamic(v, stages, text, merge, Projector(layers, "rms", hidden), video_tokens=24576)


def qwen3_vl(f: Fields) -> VisionLanguage:
    """Qwen3-VL: learned positions, and mergers from inner layers too (DeepStack: arXiv:2406.04334).

    Bounds of 256 and 16384 tokens an image are those of the published processor.
    """
    v, text = _inner(f, "vision_config"), _decoder(f.data)
    hidden, merge = v.whole("hidden_size", default=1152), v.whole("spatial_merge_size", default=2)
    stage = AttentionStage(
        v.whole("depth", default=27),
        hidden,
        v.whole("num_heads", default=16),
        v.whole("intermediate_size", default=4304),
    )
    wide = hidden * merge**2
    layers = (Dense("projector", wide, wide), Dense("projector", wide, text.hidden))
    deep = v.data.get("deepstack_visual_indexes", [8, 16, 24])
    v.need("deepstack_visual_indexes", isinstance(deep, list), "need a list of layers")
    between = [Projector(layers, "layer", hidden)]
    between += [Projector(layers, "layer", wide, copies=len(deep))] if deep else []
    step = v.whole("patch_size", default=16) * merge
    return _dynamic(
        v,
        (stage,),
        text,
        merge,
        *between,
        bias=True,
        patch=16,
        positions=v.whole("num_position_embeddings", default=2304),
        least=256 * 256,
        most=16384 * step**2,
        video_tokens=24576,
    )


def internvl(f: Fields) -> VisionLanguage:
    """InternVL 1.5 to 3: InternViT on tiles, 2 x 2 patches merged (arXiv:2404.16821)."""
    v, text = _inner(f, "vision_config"), _decoder(f.data)
    hidden = v.whole("hidden_size", default=1024)
    side, patch = (
        _side(v, name, default) for name, default in (("image_size", 448), ("patch_size", 14))
    )
    bias = v.flag("qkv_bias", v.flag("attention_bias", True))
    v.need("qkv_bias", bias, "only encoders with biases are known (InternViT-300M)")
    # two vectors of layer scales beside products and norms
    stage = AttentionStage(
        v.whole("num_hidden_layers", default=24),
        hidden,
        v.whole("num_attention_heads", default=16),
        v.whole("intermediate_size", default=4 * hidden),
        extra=2 * hidden,
    )
    stem = PatchStem(patch, hidden, side, positions=(side // patch) ** 2 + 1)
    vision = Encoder("vision", stem, (stage,), final_norm="")
    ratio = f.data.get("downsample_ratio", 0.5)
    f.need("downsample_ratio", ratio in (1, 1.0, 0.5, 0.25), "need 1, 0.5 or 0.25")
    merge = round(1 / ratio)
    wide = hidden * merge**2
    layers = (Dense("projector", wide, text.hidden), Dense("projector", text.hidden, text.hidden))
    most = f.whole("max_dynamic_patch", default=12)
    return VisionLanguage(
        "",
        vision=vision,
        projectors=(Projector(layers, "layer", wide),),
        decoder=text,
        rule=Tiles(side, patch, merge, most),
        width=side,
        height=side,
    )


def _side(f: Fields, name: str, default: int) -> int:
    """One side of a square that is given as a number or as a pair."""
    given = f.data.get(name)
    if isinstance(given, list) and given and given[0] == given[-1]:
        return Fields({name: given[0]}, f.path).whole(name)
    return f.whole(name, default=default)


def paligemma(f: Fields) -> VisionLanguage:
    """PaliGemma: SigLIP without pooling, one linear layer, Gemma (arXiv:2407.07726)."""
    v = _inner(f, "vision_config")
    vision = siglip_vision(Fields({**v.data, "vision_use_head": False}, v.path))
    stem = vision.stem
    if not isinstance(stem, PatchStem):
        raise SpecError(f"{v.path}: no image encoder")
    text = _decoder({"tie_word_embeddings": True, **f.data})
    layers = (Dense("projector", stem.hidden, text.hidden),)
    return VisionLanguage(
        "",
        vision=_named(vision),
        projectors=(Projector(layers),),
        decoder=text,
        rule=FixedPatches(stem.image, stem.patch),
        width=stem.image,
        height=stem.image,
    )


READERS: dict[str, Callable[[Fields], VisionLanguage]] = {
    "llava": llava,
    "llava_next": llava,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl,
    "internvl": internvl,
    "internvl_chat": internvl,
    "paligemma": paligemma,
}
