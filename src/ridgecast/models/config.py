"""From a Hugging Face config.json to a network: which reader, which formats.

Owns the table of architectures and what published quantised checkpoints are stored in. Readers of
decoders are in `decoders`, of state-space models in `state_space_configs`. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from ..errors import SpecError, UnsupportedError, unknown_name
from .fields import Fields
from .network import Network
from .transformer import Decoder

__all__ = ["READERS", "formats_in", "read_config"]

# model_type -> "module:function" of this package; the function takes `Fields`
READERS: dict[str, str] = {
    "llama": "decoders:llama",
    "yi": "decoders:llama",
    "mistral": "decoders:llama",
    "ministral": "decoders:llama",
    "mistral3": "decoders:llama",
    "phi3": "decoders:llama",
    "internlm2": "decoders:llama",
    "granite": "decoders:llama",
    "qwen2": "decoders:qwen2",
    "qwen2_vl": "decoders:qwen2",
    "qwen2_5_vl": "decoders:qwen2",
    "mimo": "decoders:qwen2",
    "qwen3": "decoders:qwen3",
    "qwen3_vl": "decoders:qwen3",
    "qwen2_moe": "decoders:qwen_moe",
    "qwen3_moe": "decoders:qwen_moe",
    "qwen3_vl_moe": "decoders:qwen_moe",
    "qwen3_next": "decoders:qwen_next",
    "qwen3_5": "decoders:qwen_next",
    "qwen3_5_moe": "decoders:qwen_next",
    "gemma": "decoders:gemma",
    "gemma2": "decoders:gemma",
    "gemma3": "decoders:gemma",
    "gpt2": "decoders:gpt2",
    "gpt_neox": "decoders:gpt_neox",
    "gptj": "decoders:gptj",
    "opt": "decoders:opt",
    "falcon": "decoders:falcon",
    "bloom": "decoders:bloom",
    "phi": "decoders:phi",
    "mixtral": "decoders:mixtral",
    "deepseek_v2": "decoders:deepseek",
    "deepseek_v3": "decoders:deepseek",
    "deepseek_v32": "decoders:deepseek",
    "kimi_k2": "decoders:deepseek",
    "glm_moe_dsa": "decoders:deepseek",
    "glm4": "decoders:glm4",
    "glm4_moe": "decoders:glm4_moe",
    "minimax": "decoders:minimax",
    "minimax_text_01": "decoders:minimax",
    "minimax_m1": "decoders:minimax",
    "minimax_m2": "decoders:minimax_m2",
    "gpt_oss": "decoders:gpt_oss",
    "panguembedded": "decoders:pangu",
    "pangu": "decoders:pangu",
    "pangu_pro_moe": "decoders:pangu_moe",
    "pangupromoe": "decoders:pangu_moe",
    "pangu_moe": "decoders:pangu_moe",
    "llama4": "decoders:llama4",
    "starcoder2": "decoders:starcoder2",
    "olmo2": "decoders:olmo2",
    "cohere": "decoders:cohere",
    "cohere2": "decoders:cohere",
    "stablelm": "decoders:stablelm",
    "stablelm_epoch": "decoders:stablelm",
    "mimo_v2_flash": "decoders:mimo_v2",
    "arctic": "decoders:arctic",
    "mamba": "state_space_configs:mamba",
    "falcon_mamba": "state_space_configs:falcon_mamba",
    "mamba2": "state_space_configs:mamba2",
    "jamba": "state_space_configs:jamba",
    "bamba": "state_space_configs:bamba",
    "nemotron_h": "state_space_configs:nemotron_h",
    "zamba2": "state_space_configs:zamba2",
}

# Where a config for several modalities keeps its language model.
_NESTED = ("text_config", "llm_config", "language_config", "language_model_config")
_WIDE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "bf16": "bf16", "fp16": "fp16",
         "fp32": "fp32"}  # fmt: skip


def read_config(config: Mapping[str, Any], name: str = "") -> Network:
    """Build the network of a config.json; of its language model where it has several parts.

    Raises UnsupportedError for an architecture that has no reader, with the nearest three, and
    SpecError with the field path for values that are missing, wrong or contradict each other.

    >>> net = read_config({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
    ...                    "vocab_size": 50257, "n_positions": 1024})
    >>> int(net.parameters)
    124439808
    """
    if not isinstance(config, Mapping):
        raise SpecError(f"config: got {type(config).__name__}, need an object of fields")
    fields = _language(config)
    architecture = _architecture(fields, config)
    module, _, function = READERS[architecture].partition(":")
    own = Fields({**fields.data, "model_type": architecture}, fields.path)
    made: Network = getattr(import_module(f".{module}", __package__), function)(own)
    linear, expert, kv = formats_in(config)
    source = str(config.get("_source") or config.get("_name_or_path") or "")
    title = source.rpartition("/")[2]
    made = replace(made, name=name or title.lower() or architecture, title=title, source=source,
                   native_dtype=linear)  # fmt: skip
    if not isinstance(made, Decoder):
        return made
    found = _quantisation(config)
    return replace(made, expert_dtype=expert, kv_dtype=kv, narrow=_narrow(found),
                   weight_group=_scale_group(found))  # fmt: skip


def _language(config: Mapping[str, Any]) -> Fields:
    """Fields of the language model; what only the outside says (tied embeddings) is kept."""
    for key in _NESTED:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            outside = {k: config[k] for k in ("tie_word_embeddings",) if k in config}
            return Fields({**outside, **inner}, f"config.{key}")
    return Fields(config)


def _architecture(fields: Fields, config: Mapping[str, Any]) -> str:
    """Name of the reader: by model_type, else by the class in `architectures`."""
    asked: list[str] = []
    for data in (fields.data, config):
        kind = str(data.get("model_type") or "").lower()
        asked += [kind, kind.removesuffix("_text")]
        classes = data.get("architectures")
        for each in classes if isinstance(classes, list) else ():
            asked.append(_snake(str(each)))
    for kind in asked:
        if kind in READERS:
            return kind
    got = next((a for a in asked if a), "")
    if not got:
        raise SpecError("config.model_type: not given; need one of the architectures, such as "
                        "llama, qwen3_moe, deepseek_v3")  # fmt: skip
    step = ("Give model_type the architecture that it is equal to in shape, or use an ONNX file or "
            "a torch module instead.")  # fmt: skip
    raise UnsupportedError(unknown_name("architecture", got, READERS, step))


def _snake(cls: str) -> str:
    """Turn a class name into a model_type: Qwen3MoeForCausalLM -> qwen3_moe.

    >>> _snake("Qwen3MoeForCausalLM"), _snake("LlamaForCausalLM")
    ('qwen3_moe', 'llama')
    """
    stem = cls
    for tail in ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Model"):
        stem = stem.removesuffix(tail)
    out = "".join(f"_{c.lower()}" if c.isupper() and i and not stem[i - 1].isupper() else c.lower()
                  for i, c in enumerate(stem))  # fmt: skip
    return {"pangu_pro_mo_e": "pangu_pro_moe", "pangu_embedded": "panguembedded",
            "deepseek_v2": "deepseek_v2", "mini_max_m2": "minimax_m2",
            "mini_max_text01": "minimax_text_01"}.get(out, out)  # fmt: skip


# ------------------------------------------------------------------ formats


def formats_in(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """Find formats of the published weights: linear layers, routed experts, cache ("": not said).

    Understands fp8 (with blocks or without), modelopt (NVFP4, FP8), mxfp4, AWQ, GPTQ,
    bitsandbytes and compressed-tensors. Where attention is listed as left alone, linear layers
    count as 16 bits and experts as quantised. Raises UnsupportedError for others.
    """
    wide = "bf16"
    for part in _parts(config):
        word = part.get("torch_dtype") or part.get("dtype")
        wide = _WIDE.get(str(word).removeprefix("torch."), wide)
    found = _quantisation(config)
    if not found:
        return wide, wide, ""
    linear = _quantised(found)
    cache = found.get("kv_cache_quant_algo") or found.get("kv_cache_scheme")
    if isinstance(cache, Mapping):
        cache = "FP8" if cache.get("num_bits") == 8 else ""
    kv = "fp8_e4m3" if str(cache or "").upper() == "FP8" else ""
    return (wide if _attention_left(found) else linear), linear, kv


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [config, *(config[k] for k in _NESTED if isinstance(config.get(k), Mapping))]


def _quantisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find what the checkpoint says of its quantisation; empty where it says nothing."""
    found: Any = None
    for part in _parts(config):
        found = part.get("quantization_config") or part.get("compression_config") or found
    if not isinstance(found, Mapping):
        return {}
    inner = found.get("quantization")  # as in hf_quant_config.json
    return inner if isinstance(inner, Mapping) else found


def _quantised(q: Mapping[str, Any]) -> str:
    """Format of the quantised layers."""
    algo, method = str(q.get("quant_algo") or "").upper(), str(q.get("quant_method") or "").lower()
    plain = {"NVFP4": "nvfp4", "FP8": "fp8_e4m3", "W4A16_AWQ": "int4_wo", "W4A8_AWQ": "int4_wo",
             "FP8_PB_WO": "fp8_block", "INT8": "int8"}  # fmt: skip
    if algo in plain:
        return plain[algo]
    if method == "fp8":
        return "fp8_block" if q.get("weight_block_size") else "fp8_e4m3"
    if method in ("fbgemm_fp8", "mxfp4"):
        return {"fbgemm_fp8": "fp8_e4m3", "mxfp4": "mxfp4"}[method]
    bits = q.get("bits") or q.get("w_bit") or (4 if q.get("load_in_4bit") else None)
    bits = bits or (8 if q.get("load_in_8bit") else None)
    if method in ("awq", "gptq", "bitsandbytes", "auto-round", "intel/auto-round") and bits:
        if int(bits) in (4, 8):
            return "int4_wo" if int(bits) == 4 else "int8_wo"
    groups = q.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        kind = _group(group)
        if kind:
            return kind
    raise UnsupportedError(
        f"config.quantization_config: got {method or algo or 'no method'!r} with {bits} bits, know "
        "fp8, modelopt, mxfp4, awq, gptq, bitsandbytes (4 or 8 bits), compressed-tensors; leave it "
        "out and give the format with --dtype"
    )


def _group(group: Mapping[str, Any]) -> str:
    """Format of a group of compressed-tensors or modelopt."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    kind = (weights.get("type"), weights.get("num_bits"))
    if kind == ("float", 8):
        return "fp8_block" if weights.get("strategy") == "block" else "fp8_e4m3"
    if kind == ("float", 4):
        return "mxfp4" if weights.get("group_size") == 32 else "nvfp4"
    if kind == ("int", 4):
        return "int4_wo"
    if kind == ("int", 8):
        return "int8" if inputs else "int8_wo"
    return ""


def _scale_group(q: Mapping[str, Any]) -> int:
    """Read how many weights share a scale (of a block: all of its cells); 0: it does not say."""
    block = q.get("weight_block_size")
    if isinstance(block, list) and len(block) == 2 and all(isinstance(b, int) for b in block):
        return block[0] * block[1]
    groups = q.get("config_groups")
    weights = (
        [g.get("weights") or {} for g in groups.values()] if isinstance(groups, Mapping) else []
    )
    for found in (
        q.get("group_size"),
        q.get("q_group_size"),
        *(w.get("group_size") for w in weights),
    ):
        if isinstance(found, int) and found > 0:
            return found
    return 0


def _left(q: Mapping[str, Any]) -> list[str]:
    """Name the modules that were not quantised, without wildcards at their ends."""
    found: list[Any] = []
    for key in ("ignore", "exclude_modules", "modules_to_not_convert"):
        given = q.get(key)
        found += given if isinstance(given, list) else []
    return [str(entry).rstrip("*$.") for entry in found]


def _attention_left(q: Mapping[str, Any]) -> bool:
    """Whether the projections of q, k and v are among what was not quantised."""
    tails = ("self_attn", "kv_a_proj_with_mqa", "qkv_proj", "q_proj", "q_a_proj")
    return any(entry.endswith(tails) for entry in _left(q))


def _narrow(q: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts that were quantised with the experts though attention was left alone."""
    if not _attention_left(q) or str(q.get("quant_method")).lower() == "mxfp4":
        return ()  # mxfp4 quantises routed experts only
    left = _left(q)
    kept = {
        "attention_out": any(e.endswith(("self_attn", "o_proj")) for e in left),
        "ffn": any(
            e.endswith(("mlp", "model.layers.0", "down_proj")) or "mlp\\.(" in e for e in left
        ),
        "shared_expert": any("shared_expert" in e for e in left),
    }
    return tuple(part for part, wide in kept.items() if not wide)
