"""Readers of encoder configs: BERT and kin, ViT, DeiT, Swin, CLIP, SigLIP, Vision Mamba, convnets.

From a Hugging Face config.json to an `Encoder`, `TwoTowers` or `ConvNet`; defaults are those of
the Hugging Face configuration classes. `num_labels` is the classifier's width (0: none). Vision
Mamba and RegNet-like networks have no such class: their fields are those of the shipped files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from ..errors import SpecError, UnsupportedError, unknown_name
from .convnet import ConvNet, ConvStage
from .encoder import Encoder, TwoTowers
from .encoder_parts import AttentionStage, Dense, PatchStem, TextStem
from .fields import Fields
from .network import Network
from .state_space import MambaMixer, VimStage

__all__ = ["ENCODERS", "clip_vision", "encoder", "siglip_vision"]

# model_type -> function of this module
ENCODERS: dict[str, str] = {
    "bert": "bert",
    "roberta": "bert",
    "distilbert": "distilbert",
    "vit": "vit",
    "deit": "vit",
    "swin": "swin",
    "vim": "vim",
    "clip": "clip",
    "clip_vision_model": "clip_vision",
    "siglip": "siglip",
    "siglip_vision_model": "siglip_vision",
    "resnet": "resnet",
    "convnet": "convnet",
}


def encoder(config: Mapping[str, Any], name: str = "") -> Network:
    """Build the encoder of a config.json.

    Raises UnsupportedError for a model_type without a reader, SpecError for missing or wrong
    fields, with their path.
    """
    from .config import formats_in

    kind = str(config.get("model_type") or "")
    if kind not in ENCODERS:
        raise UnsupportedError(unknown_name("encoder model_type", kind, ENCODERS))
    made: Network = getattr(import_module(__name__), ENCODERS[kind])(Fields(config))
    source = str(config.get("_source") or config.get("_name_or_path") or "")
    return replace(
        made,
        name=name or kind,
        title=str(config.get("_title") or name or kind),
        source=source,
        native_dtype=formats_in(config)[0],
    )


def _stage(f: Fields, **options: Any) -> AttentionStage:
    """Read layers whose fields have their usual names."""
    hidden = f.whole("hidden_size")
    heads = f.whole("num_attention_heads")
    f.need("num_attention_heads", hidden % heads == 0, f"need a divisor of hidden_size {hidden}")
    given: dict[str, Any] = {
        "layers": f.whole("num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "inter": f.whole("intermediate_size", default=4 * hidden),
        "activation": f.activation("hidden_act", default="gelu"),
    }
    return AttentionStage(**(given | options))


def _classifier(f: Fields, hidden: int) -> tuple[Dense, ...]:
    labels = f.whole("num_labels", default=0, low=0)
    return (Dense("classifier", hidden, labels),) if labels else ()


def bert(f: Fields) -> Encoder:
    """BERT (Devlin et al. 2018, arXiv:1810.04805) with its pooler, and RoBERTa."""
    stage = _stage(f)
    stem = TextStem(
        f.whole("vocab_size"),
        stage.hidden,
        f.whole("max_position_embeddings"),
        f.whole("type_vocab_size", default=2, low=0),
    )
    tail = (Dense("pooler", stage.hidden, stage.hidden), *_classifier(f, stage.hidden))
    return Encoder("", stem, (stage,), final_norm="", tail=tail)


def distilbert(f: Fields) -> Encoder:
    """DistilBERT (Sanh et al. 2019, arXiv:1910.01108): no segments, no pooler."""
    hidden = f.whole("dim", default=768)
    stage = AttentionStage(
        f.whole("n_layers", default=6),
        hidden,
        f.whole("n_heads", default=12),
        f.whole("hidden_dim", default=4 * hidden),
    )
    stem = TextStem(
        f.whole("vocab_size", default=30522),
        hidden,
        f.whole("max_position_embeddings", default=512),
    )
    return Encoder("", stem, (stage,), final_norm="", tail=_classifier(f, hidden))


def _patches(f: Fields, hidden: int, prefix: int = 1, **options: Any) -> PatchStem:
    """Read the stem of an image encoder with learned positions."""
    image, patch = f.whole("image_size", default=224), f.whole("patch_size", default=16)
    f.need("patch_size", patch <= image, f"need at most image_size {image}")
    positions = (image // patch) ** 2 + prefix
    given: dict[str, Any] = {"channels": f.whole("num_channels", default=3), "positions": positions}
    return PatchStem(patch, hidden, image, prefix=prefix, **(given | options))


def vit(f: Fields) -> Encoder:
    """ViT (Dosovitskiy et al. 2020, arXiv:2010.11929) and DeiT (arXiv:2012.12877).

    `distilled`: a second prefix token and a second classifier.
    """
    stage = _stage(f)
    distilled = f.flag("distilled", False)
    stem = _patches(f, stage.hidden, 2 if distilled else 1)
    tail = _classifier(f, stage.hidden) * (2 if distilled else 1)
    return Encoder("", stem, (stage,), tail=tail)


def swin(f: Fields) -> Encoder:
    """Swin (Liu et al. 2021, arXiv:2103.14030): windows, each stage a quarter of the tokens.

    Shifted windows have as many tokens as others; the tables of relative positions of a layer are
    (2 window - 1)^2 a head.
    """
    width, depths, heads = (
        f.whole("embed_dim", default=96),
        *(_whole_list(f, name) for name in ("depths", "num_heads")),
    )
    f.need("num_heads", len(heads) == len(depths), f"need one for each of {len(depths)} stages")
    side = f.whole("window_size", default=7)
    ratio = f.whole("mlp_ratio", default=4)
    stages: list[AttentionStage] = []
    for i, (n, h) in enumerate(zip(depths, heads, strict=True)):
        hidden = width * 2**i
        stages.append(
            AttentionStage(
                n,
                hidden,
                h,
                ratio * hidden,
                window=side * side,
                reduction=4**i,
                extra=(2 * side - 1) ** 2 * h,
            )
        )
    merges = tuple(Dense("merge", 4 * s.hidden, 2 * s.hidden, False) for s in stages[:-1])
    stem = PatchStem(
        f.whole("patch_size", default=4),
        width,
        f.whole("image_size", default=224),
        prefix=0,
        norm=True,
    )
    return Encoder("", stem, tuple(stages), merges, tail=_classifier(f, stages[-1].hidden))


def _whole_list(f: Fields, name: str) -> list[int]:
    given = f.data.get(name)
    good = (
        isinstance(given, list)
        and given
        and all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in given)
    )
    if not good:
        raise SpecError(f"{f.path}.{name}: got {given!r}, need a list of whole numbers above 0")
    return list(given)  # pyright: ignore[reportArgumentType]


def vim(f: Fields) -> Encoder:
    """Vision Mamba (Zhu et al. 2024, arXiv:2401.09417): two-way Mamba layers, one class token."""
    hidden = f.whole("embed_dim")
    mixer = MambaMixer(
        inner=f.whole("expand", default=2) * hidden,
        state=f.whole("d_state", default=16),
        taps=f.whole("d_conv", default=4),
        rank=f.whole("dt_rank", default=-(-hidden // 16)),
        ways=2,
    )
    return Encoder(
        "",
        _patches(f, hidden),
        (VimStage(f.whole("depth"), hidden, mixer),),
        final_norm="rms",
        tail=_classifier(f, hidden),
    )


# ------------------------------------------------------------------ pairs


def _part(f: Fields, name: str, defaults: Mapping[str, Any]) -> Fields:
    given = f.data.get(name)
    if given is not None and not isinstance(given, Mapping):
        raise SpecError(f"{f.path}.{name}: got {given!r}, need an object of fields")
    return Fields({**defaults, **(given or {})}, f"{f.path}.{name}")


_CLIP_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": 32,
}
_SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def clip_vision(f: Fields, projection: int = 0) -> Encoder:
    """CLIP's image tower (Radford et al. 2021, arXiv:2103.00020): a norm before and after."""
    f = Fields({**_CLIP_VISION, **f.data}, f.path)
    stage = _stage(f)
    stem = _patches(f, stage.hidden, bias=False, norm=True)
    tail = (Dense("projection", stage.hidden, projection, False),) if projection else ()
    return Encoder("", stem, (stage,), tail=tail)


def clip(f: Fields) -> TwoTowers:
    """CLIP: image tower, causal text tower, a projection each, the scale of the logits."""
    wide = f.whole("projection_dim", default=512)
    texts = _part(f, "text_config", _CLIP_TEXT)
    stage = _stage(texts, causal=True)
    stem = TextStem(
        texts.whole("vocab_size"), stage.hidden, texts.whole("max_position_embeddings"), norm=False
    )
    text = Encoder("text", stem, (stage,), tail=(Dense("projection", stage.hidden, wide, False),))
    vision = clip_vision(_part(f, "vision_config", {}), wide)
    return TwoTowers("", replace(vision, name="vision"), text)


def siglip_vision(f: Fields) -> Encoder:
    """SigLIP's image tower (Zhai et al. 2023, arXiv:2303.15343); `vision_use_head`: it pools."""
    f = Fields({**_SIGLIP, **f.data}, f.path)
    stage = _stage(f)
    pooling = replace(stage, layers=1, norms=1) if f.flag("vision_use_head", True) else None
    return Encoder("", _patches(f, stage.hidden, 0), (stage,), pooling=pooling)


def siglip(f: Fields) -> TwoTowers:
    """SigLIP: image tower with pooling, text tower with a head, scale and shift of the logits."""
    texts = _part(f, "text_config", {**_SIGLIP, "vocab_size": 32000, "max_position_embeddings": 64})
    stage = _stage(texts)
    stem = TextStem(
        texts.whole("vocab_size"), stage.hidden, texts.whole("max_position_embeddings"), norm=False
    )
    head = Dense("head", stage.hidden, texts.whole("projection_size", default=stage.hidden))
    text = Encoder("text", stem, (stage,), tail=(head,))
    vision = siglip_vision(_part(f, "vision_config", {}))
    return TwoTowers("", replace(vision, name="vision"), text, extra=2)


# ------------------------------------------------------------------ convolutional


def resnet(f: Fields) -> ConvNet:
    """ResNet with the stride in the middle of a block (He et al. 2016, arXiv:1512.03385)."""
    widths, depths = _whole_list(f, "hidden_sizes"), _whole_list(f, "depths")
    f.need("depths", len(depths) == len(widths), f"need one for each of {len(widths)} stages")
    kind = f.word("layer_type", default="bottleneck")
    stages = tuple(
        ConvStage(n, w, 1 if i == 0 else 2, kind)
        for i, (n, w) in enumerate(zip(depths, widths, strict=True))
    )
    return ConvNet(
        "",
        stages=stages,
        stem=f.whole("embedding_size", default=64),
        classes=f.whole("num_labels", default=1000, low=0),
        resolution=f.whole("image_size", default=224),
    )


def convnet(f: Fields) -> ConvNet:
    """Stages as objects with the fields of `ConvStage`: RegNet, EfficientNet and the like."""
    given = f.data.get("stages")
    if not isinstance(given, list) or not given or not all(isinstance(x, Mapping) for x in given):
        raise SpecError(f"{f.path}.stages: got {given!r}, need a list of objects")
    known = set(ConvStage.__dataclass_fields__)
    for i, stage in enumerate(given):
        for key in stage:
            if key not in known:
                raise SpecError(unknown_name(f"{f.path}.stages[{i}] field", str(key), known))
    stages = tuple(ConvStage(**stage) for stage in given)
    return ConvNet(
        "",
        stages=stages,
        stem=f.whole("stem"),
        stem_kernel=f.whole("stem_kernel", default=3),
        stem_pool=f.flag("stem_pool", False),
        head=f.whole("head", default=0, low=0),
        classes=f.whole("num_labels", default=1000, low=0),
        resolution=f.whole("image_size", default=224),
    )
