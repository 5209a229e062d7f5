"""Readers of state-space and hybrid configs: Mamba, Mamba-2, Jamba, Bamba, Nemotron-H and kin.

One function an architecture, from fields of a Hugging Face config.json to a `Decoder`; defaults are
those of the Hugging Face configuration classes. Knows shapes only.
"""

from __future__ import annotations

from typing import Any

from .attention import GroupedAttention, Mixer
from .decoders import blocks_of, heads_of
from .ffn import DenseFfn, Ffn, MoeFfn
from .fields import Fields
from .shared_blocks import SharedBlock
from .state_space import Mamba2Mixer, MambaMixer
from .transformer import Decoder

__all__ = ["bamba", "falcon_mamba", "jamba", "mamba", "mamba2", "nemotron_h", "zamba2"]


def _decoder(f: Fields, layers: list[tuple[Mixer | None, Ffn | None]], norms: int) -> Decoder:
    return Decoder(
        "",
        hidden=f.whole("hidden_size", "d_model"),
        vocab=f.whole("vocab_size"),
        blocks=blocks_of(layers, norms=norms),
        tied=f.flag("tie_word_embeddings", True),
        max_positions=f.whole("max_position_embeddings", default=0, low=0),
    )


def _layers(f: Fields, default: int | None = None) -> int:
    """Read the number of layers. Raises SpecError beyond 10,000, which no network has."""
    n = f.whole("num_hidden_layers", "n_layer", default=default)
    f.need("num_hidden_layers", n <= 10_000, "need at most 10000")
    return n


def _rank(f: Fields, name: str, hidden: int) -> int:
    """Size of dt's bottleneck: given, or "auto", a sixteenth of the hidden size, rounded up."""
    given = f.data.get(name)
    if given is None or given == "auto":
        return -(-hidden // 16)
    return f.whole(name)


def _mamba(f: Fields, prefix: str = "", **options: Any) -> MambaMixer:
    hidden = f.whole("hidden_size", "d_model")
    names = {"state": "state_size", "taps": "conv_kernel", "rank": "time_step_rank"}
    if prefix:
        names = {"state": "mamba_d_state", "taps": "mamba_d_conv", "rank": "mamba_dt_rank"}
    expand = f.whole("mamba_expand" if prefix else "expand", default=2)
    inner = (
        f.whole(f"{prefix}intermediate_size", default=expand * hidden)
        if not prefix
        else (expand * hidden)
    )
    return MambaMixer(
        inner=inner,
        state=f.whole(names["state"], default=16),
        taps=f.whole(names["taps"], default=4),
        rank=_rank(f, names["rank"], hidden),
        bias=f.flag("mamba_proj_bias" if prefix else "use_bias", False),
        conv_bias=f.flag("mamba_conv_bias" if prefix else "use_conv_bias", True),
        **options,
    )


def mamba(f: Fields, **options: Any) -> Decoder:
    """Mamba: layers of one norm and one mixer, no feed-forward part."""
    layers = _layers(f)
    mixer: Mixer = _mamba(f, **options)
    return _decoder(f, [(mixer, None)] * layers, norms=1)


def falcon_mamba(f: Fields) -> Decoder:
    """Falcon-Mamba: Mamba with norms of dt, B and C that have no gains (arXiv:2410.05355)."""
    return mamba(f, norms="plain")


def _mamba2(f: Fields, names: dict[str, str], **defaults: int) -> Mamba2Mixer:
    """Read a Mamba-2 mixer whose fields have these `names`."""
    given: dict[str, Any] = {
        field: f.whole(name, default=defaults.get(field)) for field, name in names.items()
    }
    return Mamba2Mixer(**given)


def mamba2(f: Fields) -> Decoder:
    """Mamba-2 and Codestral-Mamba."""
    hidden = f.whole("hidden_size", "d_model")
    size = f.whole("head_dim", default=64)
    heads = f.whole("num_heads", default=f.whole("expand", default=2) * hidden // size)
    inner = f.whole("expand", default=2) * hidden
    f.need(
        "num_heads",
        heads * size == inner,
        f"times head_dim {size} must be expand x hidden_size, {inner}",
    )
    mixer = Mamba2Mixer(
        heads=heads,
        head_dim=size,
        state=f.whole("state_size", default=128),
        groups=f.whole("n_groups", default=8),
        taps=f.whole("conv_kernel", default=4),
        chunk=f.whole("chunk_size", default=256),
        bias=f.flag("use_bias", False),
        conv_bias=f.flag("use_conv_bias", True),
    )
    layers: list[tuple[Mixer | None, Ffn | None]] = [(mixer, None)]
    return _decoder(f, layers * _layers(f), norms=1)


def jamba(f: Fields) -> Decoder:
    """Jamba: attention each `attn_layer_period`, experts each `expert_layer_period` layers."""
    hidden = f.whole("hidden_size")
    n, inter = _layers(f), f.whole("intermediate_size")
    heads, kv, size = heads_of(f, hidden)
    attends = _each(f, "attn_layer_period", "attn_layer_offset", n, 8, 4)
    routes = _each(f, "expert_layer_period", "expert_layer_offset", n, 2, 1)
    attention: Mixer = GroupedAttention(heads, kv, size, rotary=False)
    scan: Mixer = _mamba(f, "mamba_", norms="gain")
    experts = f.whole("num_experts", default=16)
    dense: Ffn = DenseFfn(inter, activation=f.activation("hidden_act"))
    routed: Ffn = MoeFfn(experts, f.whole("num_experts_per_tok", default=2), inter)
    layers: list[tuple[Mixer | None, Ffn | None]] = [
        (attention if a else scan, routed if r and experts > 1 else dense)
        for a, r in zip(attends, routes, strict=True)
    ]
    return _decoder(f, layers, norms=2)


def _each(f: Fields, period: str, offset: str, layers: int, default: int, first: int) -> list[bool]:
    every, start = f.whole(period, default=default), f.whole(offset, default=first, low=0)
    f.need(offset, start < every, f"need less than {period}, {every}")
    return [i % every == start for i in range(layers)]


_BAMBA = {
    "heads": "mamba_n_heads",
    "head_dim": "mamba_d_head",
    "state": "mamba_d_state",
    "groups": "mamba_n_groups",
    "taps": "mamba_d_conv",
    "chunk": "mamba_chunk_size",
}


def bamba(f: Fields) -> Decoder:
    """Bamba: Mamba-2 and attention layers, each with a dense feed-forward part."""
    hidden, n = f.whole("hidden_size"), _layers(f)
    heads, kv, size = heads_of(f, hidden)
    given = f.listed("attn_layer_indices")
    scan: Mixer = _mamba2(f, _BAMBA, groups=1, taps=4, chunk=256, head_dim=64, state=256)
    attention: Mixer = GroupedAttention(heads, kv, size)
    dense: Ffn = DenseFfn(f.whole("intermediate_size"))
    layers: list[tuple[Mixer | None, Ffn | None]] = [
        (attention if i in given else scan, dense) for i in range(n)
    ]
    return _decoder(f, layers, norms=2)


_NEMOTRON = {
    "heads": "mamba_num_heads",
    "head_dim": "mamba_head_dim",
    "state": "ssm_state_size",
    "groups": "n_groups",
    "taps": "conv_kernel",
    "chunk": "chunk_size",
}


def nemotron_h(f: Fields) -> Decoder:
    """Nemotron-H: a letter a layer: M Mamba-2, * attention, - feed-forward, E experts.

    Each layer is one norm and one of them (NVIDIA 2025, arXiv:2504.03624).
    """
    pattern = f.word("hybrid_override_pattern")
    n = _layers(f, len(pattern))
    f.need(
        "hybrid_override_pattern",
        len(pattern) == n and set(pattern) <= set("M*-E"),
        f"need one of M, *, -, E for each of {n} layers",
    )
    heads, kv, size = heads_of(f, f.whole("hidden_size"))
    act = f.activation("mlp_hidden_act", default="relu2")
    parts: dict[str, tuple[Mixer | None, Ffn | None]] = {
        "M": (_mamba2(f, _NEMOTRON, taps=4, chunk=128), None),
        "*": (GroupedAttention(heads, kv, size, rotary=False), None),
        "-": (None, DenseFfn(f.whole("intermediate_size"), gated=False, activation=act)),
    }
    if "E" in pattern:
        shared = f.whole("n_shared_experts", default=0, low=0)
        shared *= f.whole("moe_shared_expert_intermediate_size", default=0, low=0)
        parts["E"] = (
            None,
            MoeFfn(
                f.whole("n_routed_experts"),
                f.whole("num_experts_per_tok"),
                f.whole("moe_intermediate_size"),
                shared=shared,
                gated=False,
                activation=act,
                router_bias=True,
            ),
        )
    return _decoder(f, [parts[letter] for letter in pattern], norms=1)


_ZAMBA = {
    "heads": "n_mamba_heads",
    "head_dim": "mamba_headdim",
    "state": "mamba_d_state",
    "groups": "mamba_ngroups",
    "taps": "mamba_d_conv",
    "chunk": "chunk_size",
}


def zamba2(f: Fields) -> Decoder:
    """Zamba2: Mamba-2 layers, some after an attention block that layers share."""
    hidden, n = f.whole("hidden_size"), _layers(f)
    given = f.data.get("hybrid_layer_ids") or []
    f.need(
        "hybrid_layer_ids",
        isinstance(given, list) and all(i in range(n) for i in given),
        f"need a list of layers below {n}",
    )
    defaults = {"head_dim": 2 * hidden // f.whole("n_mamba_heads", default=8)}
    scan = _mamba2(f, _ZAMBA, heads=8, state=64, groups=1, taps=4, chunk=256, **defaults)
    heads = f.whole("num_attention_heads", default=32)
    size = f.whole("attention_head_dim", default=2 * hidden // heads)
    attention = GroupedAttention(
        heads,
        f.whole("num_key_value_heads", default=heads),
        size,
        rotary=f.flag("use_mem_rope", False),
    )
    ffn = DenseFfn(
        f.whole("intermediate_size", default=4 * hidden),
        activation=f.activation("hidden_act", default="gelu"),
    )
    shared: Mixer = SharedBlock(
        attention,
        ffn,
        scan,
        min(f.whole("num_mem_blocks", default=1), max(1, len(given))),
        max(1, len(given)),
        f.whole("adapter_rank", default=128),
        f.flag("use_shared_attention_adapter", False),
    )
    layers: list[tuple[Mixer | None, Ffn | None]] = [
        (shared if i in given else scan, None) for i in range(n)
    ]
    return _decoder(f, layers, norms=1)
