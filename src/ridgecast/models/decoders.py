"""Readers of decoder configs: fields of a Hugging Face config.json to a `Decoder`.

One function an architecture, or a family of them; `config` holds the table. Defaults are those of
the Hugging Face transformers configuration classes. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .attention import GroupedAttention, LatentAttention, Mixer
from .ffn import DenseFfn, Ffn, MoeFfn
from .fields import Fields
from .linear_attention import GatedDeltaNet, LightningAttention
from .transformer import Block, Decoder

__all__ = ["blocks_of", "heads_of"]


def blocks_of(
    layers: Sequence[tuple[Mixer | None, Ffn | None]], **options: Any
) -> tuple[Block, ...]:
    """Group layers alike, in the order in which they first come."""
    counts: dict[tuple[Mixer | None, Ffn | None], int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return tuple(Block(n, mixer, ffn, **options) for (mixer, ffn), n in counts.items())


def heads_of(f: Fields, hidden: int, *, default_kv: int | None = None) -> tuple[int, int, int]:
    """Read query heads, heads of keys and values, and their size.

    Raises SpecError where hidden does not divide by heads and no head_dim is given, or heads do
    not divide by those of keys and values.
    """
    heads = f.whole("num_attention_heads", "n_head")
    kv = f.whole("num_key_value_heads", "num_kv_heads", default=default_kv or heads)
    if not f.has("head_dim"):
        name = "num_attention_heads" if f.has("num_attention_heads") else "n_head"
        f.need(name, hidden % heads == 0,
               f"need a divisor of hidden_size {hidden}, or head_dim beside it")  # fmt: skip
    name = "num_key_value_heads" if f.has("num_key_value_heads") else "num_kv_heads"
    f.need(name, heads % kv == 0, f"need a divisor of the {heads} query heads")
    return heads, kv, f.whole("head_dim", default=hidden // heads)


def _grouped(f: Fields, hidden: int, **options: Any) -> GroupedAttention:
    heads, kv, size = heads_of(f, hidden)
    return GroupedAttention(heads, kv, size, **options)


def _decoder(f: Fields, blocks: tuple[Block, ...], **options: Any) -> Decoder:
    """Fill in what all configs name alike; `options` win."""
    given: dict[str, Any] = {
        "hidden": f.whole("hidden_size", "n_embd", "d_model"),
        "vocab": f.whole("vocab_size"),
        "tied": f.flag("tie_word_embeddings", False),
        "max_positions": f.whole("max_position_embeddings", "n_positions", "seq_length",
                                 "max_seq_len", default=0, low=0),
    }  # fmt: skip
    return Decoder("", blocks=blocks, **(given | options))


def _layers(f: Fields) -> int:
    return f.whole("num_hidden_layers", "n_layer", "num_layers")


def _windows(f: Fields, layers: int, pattern: Sequence[bool]) -> list[int]:
    """Window of each layer: layer_types where given, else `pattern` (True: sliding)."""
    size = f.whole("sliding_window", default=0, low=0)
    types = f.row("layer_types", layers)
    if types is not None:
        pattern = [str(t) == "sliding_attention" for t in types]
    return [size if slides else 0 for slides in pattern]


# ------------------------------------------------------------------ dense


def llama(f: Fields, **attention: Any) -> Decoder:
    """Llama, Yi, Mistral, Phi-3, InternLM and others of the same shape; Qwen2, Qwen3, MiMo."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    bias = f.flag("attention_bias", False)
    attention = {"qkv_bias": bias, "out_bias": bias} | attention
    mistral = not f.word("model_type").startswith("qwen")  # Qwen slides only where it says so
    slides = f.has("sliding_window") and f.flag("use_sliding_window", mistral)
    first = f.whole("max_window_layers", default=0, low=0) if f.has("use_sliding_window") else 0
    windows = _windows(f, layers, [slides and i >= first for i in range(layers)])
    one = _grouped(f, hidden, **attention)
    ffn = DenseFfn(f.whole("intermediate_size"), True, f.activation("hidden_act"),
                   f.flag("mlp_bias", False))  # fmt: skip
    return _decoder(f, blocks_of([(replace(one, window=w), ffn) for w in windows]))


def qwen2(f: Fields) -> Decoder:
    """Qwen2, Qwen2.5 and MiMo: biases on q, k and v only."""
    return llama(f, qkv_bias=True, out_bias=False)


def qwen3(f: Fields) -> Decoder:
    """Qwen3: norms of each head's q and k."""
    return llama(f, qk_norm="head")


def pangu(f: Fields) -> Decoder:
    """Pangu dense (openPangu-Embedded): Llama with biases on all attention projections."""
    bias = f.flag("bias", True)
    return llama(f, qkv_bias=bias, out_bias=bias)


def olmo2(f: Fields) -> Decoder:
    """OLMo 2: norms after each part, of all columns of q and of k."""
    return llama(f, qk_norm="full")


def gemma(f: Fields) -> Decoder:
    """Gemma, Gemma 2 (every other layer slides), Gemma 3 (five of six)."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    kind = f.word("model_type")
    third = "gemma3" in kind
    period = f.whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
    pattern = [(i + 1) % period != 0 for i in range(layers)]
    if not third:
        pattern = [kind == "gemma2" and i % 2 == 0 for i in range(layers)]
    one = _grouped(f, hidden, qk_norm="head" if third else "")
    act = f.activation("hidden_activation", "hidden_act", default="gelu")
    ffn = DenseFfn(f.whole("intermediate_size"), True, act)
    blocks = blocks_of([(replace(one, window=w), ffn) for w in _windows(f, layers, pattern)],
                       norms=2 if kind == "gemma" else 4)  # fmt: skip
    return _decoder(f, blocks, tied=f.flag("tie_word_embeddings", True))


def glm4(f: Fields) -> Decoder:
    """GLM-4 (0414): norms before and after each part, biases on q, k and v."""
    made = llama(f, qkv_bias=f.flag("attention_bias", False), out_bias=False)
    return replace(made, blocks=tuple(replace(b, norms=4) for b in made.blocks))


def _gpt(
    f: Fields, ffn: DenseFfn, *, rotary: bool, norms: int = 2, parallel: bool = False,
    bias: bool = True,
) -> tuple[Block, ...]:  # fmt: skip
    """Layers of the GPT family; `bias`: of the projections of attention."""
    hidden = f.whole("hidden_size", "n_embd", "n_embed")
    one = _grouped(f, hidden, qkv_bias=bias, out_bias=bias, rotary=rotary)
    return (Block(_layers(f), one, ffn, norms, parallel),)


def gpt2(f: Fields) -> Decoder:
    """GPT-2: learned positions, tied head."""
    hidden = f.whole("n_embd", "hidden_size")
    inter = f.whole("n_inner", "intermediate_size", default=4 * hidden)
    ffn = DenseFfn(inter, False, f.activation("activation_function", default="gelu_new"), True)
    places = f.whole("n_positions", "max_position_embeddings", default=1024)
    return _decoder(f, _gpt(f, ffn, rotary=False), positions=places, norm="layer", norm_bias=True,
                    tied=f.flag("tie_word_embeddings", True))  # fmt: skip


def gpt_neox(f: Fields) -> Decoder:
    """GPT-NeoX and Pythia: both parts read the same input."""
    act = f.activation("hidden_act", default="gelu")
    ffn = DenseFfn(f.whole("intermediate_size"), False, act, True)
    blocks = _gpt(f, ffn, rotary=True, parallel=f.flag("use_parallel_residual", True),
                  bias=f.flag("attention_bias", True))  # fmt: skip
    return _decoder(f, blocks, norm="layer", norm_bias=True)


def gptj(f: Fields) -> Decoder:
    """GPT-J: one norm a layer, biases in the feed-forward part and the head only."""
    inter = f.whole("n_inner", default=4 * f.whole("n_embd", "hidden_size"))
    ffn = DenseFfn(inter, False, f.activation("activation_function", default="gelu_new"), True)
    blocks = _gpt(f, ffn, rotary=True, norms=1, parallel=True, bias=False)
    return _decoder(f, blocks, norm="layer", norm_bias=True, head_bias=True)


def opt(f: Fields) -> Decoder:
    """OPT: learned positions (two more than said), ReLU, tied head."""
    before = f.flag("do_layer_norm_before", True)
    bias = f.flag("enable_bias", True)
    ffn = DenseFfn(f.whole("ffn_dim"), False, f.activation("activation_function", default="relu"),
                   bias)  # fmt: skip
    hidden = f.whole("hidden_size")
    wide = f.whole("word_embed_proj_dim", default=hidden)
    places = f.whole("max_position_embeddings", default=2048)
    return _decoder(f, _gpt(f, ffn, rotary=False, bias=bias), positions=places + 2,
                    embed_dim=wide if wide != hidden else 0,
                    final_norm=before and not f.flag("_remove_final_layer_norm"),
                    tied=f.flag("tie_word_embeddings", True), norm="layer",
                    norm_bias=True)  # fmt: skip


def falcon(f: Fields) -> Decoder:
    """Falcon: 7B shares one head of keys and values and one norm, 40B and 180B have two norms."""
    hidden = f.whole("hidden_size")
    newer, bias = f.flag("new_decoder_architecture"), f.flag("bias")
    heads = f.whole("num_attention_heads", "n_head")
    kv = f.whole("num_kv_heads", default=heads) if newer else heads
    if not newer and f.flag("multi_query", True):
        kv = 1
    f.need("hidden_size", hidden % heads == 0, f"need a multiple of the {heads} heads")
    f.need("num_kv_heads", heads % kv == 0, f"need a divisor of the {heads} query heads")
    parallel = f.flag("parallel_attn", True) or newer
    norms = f.whole("num_ln_in_parallel_attn", default=2) if newer else 2 - int(parallel)
    one = GroupedAttention(heads, kv, hidden // heads, qkv_bias=bias, out_bias=bias,
                           rotary=not f.flag("alibi"))  # fmt: skip
    ffn = DenseFfn(f.whole("ffn_hidden_size", default=4 * hidden), False, "gelu", bias)
    return _decoder(f, (Block(_layers(f), one, ffn, norms, parallel),), norm="layer",
                    norm_bias=True, tied=f.flag("tie_word_embeddings", True))  # fmt: skip


def bloom(f: Fields) -> Decoder:
    """BLOOM: distance biases in place of positions, a norm after the embedding, tied head."""
    hidden = f.whole("hidden_size", "n_embed", "n_embd")
    blocks = _gpt(f, DenseFfn(4 * hidden, False, "gelu", True), rotary=False)
    return _decoder(f, blocks, hidden=hidden, embed_norm=True, norm="layer", norm_bias=True,
                    tied=f.flag("tie_word_embeddings", True))  # fmt: skip


def phi(f: Fields) -> Decoder:
    """Phi-1 to Phi-2: one norm a layer for both parts, biases everywhere."""
    act = f.activation("hidden_act", default="gelu_new")
    ffn = DenseFfn(f.whole("intermediate_size"), False, act, True)
    blocks = _gpt(f, ffn, rotary=True, norms=1, parallel=True)
    return _decoder(f, blocks, norm="layer", norm_bias=True, head_bias=True)


def starcoder2(f: Fields) -> Decoder:
    """StarCoder2: two matrices, biases, grouped heads."""
    hidden, bias = f.whole("hidden_size"), f.flag("use_bias", True)
    act = f.activation("hidden_act", default="gelu_pytorch_tanh")
    ffn = DenseFfn(f.whole("intermediate_size"), False, act, bias)
    one = _grouped(f, hidden, qkv_bias=bias, out_bias=bias,
                   window=f.whole("sliding_window", default=0, low=0))  # fmt: skip
    return _decoder(f, (Block(_layers(f), one, ffn),), norm="layer", norm_bias=True,
                    tied=f.flag("tie_word_embeddings", True))  # fmt: skip


def cohere(f: Fields) -> Decoder:
    """Command-R: one norm without shift for both parts, tied head; Command-R7B slides."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    bias = f.flag("attention_bias", False)
    one = _grouped(f, hidden, qkv_bias=bias, out_bias=bias,
                   qk_norm="each" if f.flag("use_qk_norm") else "")  # fmt: skip
    period = f.whole("sliding_window_pattern", default=1)
    windows = _windows(f, layers, [(i + 1) % period != 0 for i in range(layers)])
    ffn = DenseFfn(f.whole("intermediate_size"))
    blocks = blocks_of([(replace(one, window=w), ffn) for w in windows], norms=1, parallel=True)
    return _decoder(f, blocks, norm="layer", tied=f.flag("tie_word_embeddings", True))


def stablelm(f: Fields) -> Decoder:
    """StableLM: layer norms with shift, partly rotated."""
    bias, norms = f.flag("use_qkv_bias"), 1 if f.flag("use_parallel_residual") else 2
    one = _grouped(f, f.whole("hidden_size"), qkv_bias=bias,
                   qk_norm="each" if f.flag("qk_layernorm") else "")  # fmt: skip
    ffn = DenseFfn(f.whole("intermediate_size"))
    return _decoder(f, (Block(_layers(f), one, ffn, norms, norms == 1),), norm="layer",
                    norm_bias=True)  # fmt: skip


# ------------------------------------------------------------------ mixtures of experts


def _experts(f: Fields, inter: int, **options: Any) -> MoeFfn:
    """Read experts under their common names. Raises SpecError where top_k exceeds them."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    picks = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk")
    experts, top_k = f.whole(*names), f.whole(*picks)
    name = next(p for p in picks if f.has(p))
    f.need(name, top_k <= experts, f"need at most the {experts} experts")
    return MoeFfn(experts, top_k, inter, **options)


def mixtral(f: Fields) -> Decoder:
    """Mixtral: experts in every layer."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    one = _grouped(f, hidden, window=f.whole("sliding_window", default=0, low=0))
    return _decoder(f, (Block(layers, one, _experts(f, f.whole("intermediate_size"))),))


def _sparse(f: Fields, layers: int) -> list[bool]:
    """Which layers have experts (Qwen): all but mlp_only_layers, each decoder_sparse_step."""
    step = f.whole("decoder_sparse_step", default=1)
    only = set(f.listed("mlp_only_layers"))
    return [i not in only and (i + 1) % step == 0 for i in range(layers)]


def _qwen_ffns(f: Fields, layers: int) -> list[Ffn]:
    if not (f.has("num_experts") and f.whole("num_experts", low=0)):
        return [DenseFfn(f.whole("intermediate_size"))] * layers
    shared = f.whole("shared_expert_intermediate_size", default=0, low=0)
    moe = _experts(f, f.whole("moe_intermediate_size"), shared=shared, shared_gate=shared > 0)
    sparse = _sparse(f, layers)
    if all(sparse):
        return [moe] * layers
    dense = DenseFfn(f.whole("intermediate_size"))
    return [moe if s else dense for s in sparse]


def qwen_moe(f: Fields) -> Decoder:
    """Qwen2-MoE (biases, gated shared expert) and Qwen3-MoE (norms of q and k)."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    older = f.word("model_type").startswith("qwen2")
    bias = f.flag("attention_bias", False)
    one = _grouped(f, hidden, qkv_bias=older or bias, out_bias=bias and not older,
                   qk_norm="" if older else "head")  # fmt: skip
    return _decoder(f, blocks_of([(one, ffn) for ffn in _qwen_ffns(f, layers)]))


def qwen_next(f: Fields) -> Decoder:
    """Qwen3-Next and Qwen3.5: gated delta rule, every fourth layer attention with a gate."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    period = f.whole("full_attention_interval", default=4)
    types = f.row("layer_types", layers) or [
        "linear_attention" if (i + 1) % period else "full_attention" for i in range(layers)
    ]
    full = _grouped(f, hidden, qk_norm="head", gate=f.flag("attn_output_gate", True))
    k_heads, v_heads = f.whole("linear_num_key_heads"), f.whole("linear_num_value_heads")
    f.need("linear_num_value_heads", v_heads % k_heads == 0, f"need a multiple of {k_heads}")
    delta = GatedDeltaNet(k_heads, v_heads, f.whole("linear_key_head_dim"),
                          f.whole("linear_value_head_dim"),
                          f.whole("linear_conv_kernel_dim", default=4))  # fmt: skip
    mixers = [delta if t == "linear_attention" else full for t in types]
    return _decoder(f, blocks_of(list(zip(mixers, _qwen_ffns(f, layers), strict=True))))


def _deepseek_ffns(f: Fields, layers: int) -> list[Ffn]:
    """Dense layers first, then experts with shared ones."""
    inter = f.whole("moe_intermediate_size")
    shared = f.whole("n_shared_experts", "num_shared_experts", default=0, low=0) * inter
    # DeepSeek-V3 and later balance loads by a bias of the router that is stored with the weights
    balanced = not f.word("model_type").startswith("deepseek_v2")
    moe = _experts(f, inter, shared=shared, router_bias=balanced)
    pattern = f.data.get("moe_layer_freq")
    if isinstance(pattern, list):
        sparse = [bool(x) for x in f.row("moe_layer_freq", layers) or ()]
    else:
        step = f.whole("moe_layer_freq", default=1)
        first = f.whole("first_k_dense_replace", default=0, low=0)
        sparse = [i >= first and i % step == 0 for i in range(layers)]
    if all(sparse):
        return [moe] * layers
    dense = DenseFfn(f.whole("intermediate_size"))
    return [moe if s else dense for s in sparse]


def deepseek(f: Fields) -> Decoder:
    """DeepSeek-V2, V3, R1, V3.2 (sparse), Kimi-K2, GLM-5: latent attention, experts."""
    layers = _layers(f)
    mixer = LatentAttention(
        f.whole("num_attention_heads"), f.whole("q_lora_rank", default=0, low=0),
        f.whole("kv_lora_rank"), f.whole("qk_nope_head_dim"), f.whole("qk_rope_head_dim"),
        f.whole("v_head_dim"), f.flag("attention_bias"),
        f.whole("index_n_heads", default=0, low=0), f.whole("index_head_dim", default=0, low=0),
        f.whole("index_topk", default=0, low=0),
    )  # fmt: skip
    types = f.row("indexer_types", layers) or ["full"] * layers
    taken = replace(mixer, index_heads=0, index_dim=0)
    mixers = [taken if t == "shared" else mixer for t in types]
    return _decoder(f, blocks_of(list(zip(mixers, _deepseek_ffns(f, layers), strict=True))))


def glm4_moe(f: Fields) -> Decoder:
    """GLM-4.5 and 4.6: grouped attention, dense layers first, experts with a shared one."""
    one = _grouped(f, f.whole("hidden_size"), qkv_bias=f.flag("attention_bias"),
                   qk_norm="head" if f.flag("use_qk_norm") else "")  # fmt: skip
    return _decoder(f, blocks_of([(one, ffn) for ffn in _deepseek_ffns(f, _layers(f))]))


def minimax_m2(f: Fields) -> Decoder:
    """MiniMax-M2: norms of all columns of q and of k, experts in every layer."""
    one = _grouped(f, f.whole("hidden_size"), qk_norm="full" if f.flag("use_qk_norm") else "")
    shared = f.whole("shared_intermediate_size", default=0, low=0)
    moe = _experts(f, f.whole("intermediate_size"), shared=shared)
    return _decoder(f, (Block(_layers(f), one, moe),))


def minimax(f: Fields) -> Decoder:
    """MiniMax-01: lightning attention, every eighth layer softmax attention."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    heads, _, size = heads_of(f, hidden)
    linear, full = LightningAttention(heads, size), _grouped(f, hidden)
    types = f.row("attn_type_list", layers) or f.row("layer_types", layers)
    if types is None:
        types = [int((i + 1) % 8 == 0) for i in range(layers)]
    moe = _experts(f, f.whole("intermediate_size"))
    mixers = [full if t in (1, "full_attention") else linear for t in types]
    return _decoder(f, blocks_of([(m, moe) for m in mixers]))


def gpt_oss(f: Fields) -> Decoder:
    """gpt-oss: every other layer slides, sinks, biases in attention and experts."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    bias = f.flag("attention_bias", True)
    one = _grouped(f, hidden, qkv_bias=bias, out_bias=bias, sinks=True)
    windows = _windows(f, layers, [i % 2 == 0 for i in range(layers)])
    moe = _experts(f, f.whole("intermediate_size"), bias=True, router_bias=True)
    return _decoder(f, blocks_of([(replace(one, window=w), moe) for w in windows]))


def pangu_moe(f: Fields) -> Decoder:
    """Pangu Pro MoE: groups of experts with a shared one in every layer."""
    bias = f.flag("attention_bias", f.flag("qkv_bias", False))
    one = _grouped(f, f.whole("hidden_size"), qkv_bias=bias)
    shared = f.whole("shared_expert_intermediate_size", default=0, low=0)
    moe = _experts(f, f.whole("moe_intermediate_size"), shared=shared)
    return _decoder(f, (Block(_layers(f), one, moe),))


def llama4(f: Fields) -> Decoder:
    """Llama 4: three of four layers attend in chunks; experts in every or every other layer."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    inter = f.whole("intermediate_size")
    moe = _experts(f, inter, shared=inter)
    step = f.whole("interleave_moe_layer_step", default=1)
    given = f.listed("moe_layers") or range(step - 1, layers, step)
    dense = DenseFfn(f.whole("intermediate_size_mlp", default=inter))
    chunk = f.whole("attention_chunk_size", default=0, low=0)
    rotated = f.row("no_rope_layers", layers) or [int((i + 1) % 4 != 0) for i in range(layers)]
    one = _grouped(f, hidden)
    mixers = [replace(one, chunk=chunk) if r else replace(one, rotary=False) for r in rotated]
    sparse = set(given)
    ffns = [moe if i in sparse else dense for i in range(layers)]
    return _decoder(f, blocks_of(list(zip(mixers, ffns, strict=True))))


def mimo_v2(f: Fields) -> Decoder:
    """MiMo-V2-Flash: sliding layers with sinks and more heads of keys and values."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    heads, kv, size = heads_of(f, hidden)
    values = f.whole("v_head_dim", default=size)
    full = GroupedAttention(heads, kv, size, values,
                            sinks=f.flag("add_full_attention_sink_bias"))  # fmt: skip
    slides = GroupedAttention(
        f.whole("swa_num_attention_heads", default=heads),
        f.whole("swa_num_key_value_heads", default=kv),
        f.whole("swa_head_dim", default=size), f.whole("swa_v_head_dim", default=values),
        window=f.whole("sliding_window"), sinks=f.flag("add_swa_attention_sink_bias"),
    )  # fmt: skip
    pattern = f.row("hybrid_layer_pattern", layers) or [0] * layers
    mixers = [slides if p else full for p in pattern]
    return _decoder(f, blocks_of(list(zip(mixers, _deepseek_ffns(f, layers), strict=True))))


def arctic(f: Fields) -> Decoder:
    """Snowflake Arctic: experts beside a dense residual layer of hidden columns."""
    hidden, layers = f.whole("hidden_size"), _layers(f)
    moe = _experts(f, f.whole("intermediate_size"),
                   residual=hidden if f.flag("use_residual") else 0)  # fmt: skip
    return _decoder(f, (Block(layers, _grouped(f, hidden), moe, norms=3),))
