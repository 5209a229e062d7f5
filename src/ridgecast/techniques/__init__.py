"""Published methods as transforms of the work: bits, bytes, operations, launches, residency.

Owns the registry of techniques by id. A technique never multiplies a result: it changes a
`Treatment`, and the solver of `scenario` finds what follows from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ..errors import SpecError, unknown_name
from .base import Parameter, Technique, apply_all, parse
from .treatment import (
    Batching,
    KvPolicy,
    Placement,
    Reduction,
    Speculation,
    Storage,
    Treatment,
    Tuning,
)

__all__ = [
    "Batching",
    "KvPolicy",
    "Parameter",
    "Placement",
    "Reduction",
    "Speculation",
    "Storage",
    "Technique",
    "Treatment",
    "Tuning",
    "apply_all",
    "get",
    "names",
    "parse",
    "treatment_of",
]

# id -> module of this room that defines it in its TECHNIQUES (one literal dict, loaded lazily)
_MODULES: dict[str, str] = {
    "activation-beacon": "kv_policies",
    "apex-cpu-gpu": "offload",
    "batchllm": "batching",
    "bfp-outlier-kv": "kv_formats",
    "comet-w4a4kv4": "weights",
    "deepspeed-inference": "batching",
    "dfloat11": "weights",
    "dgq": "weights",
    "dovetail": "speculation",
    "dynamic-llava": "kv_policies",
    "easyspec": "speculation",
    "efficientqat": "weights",
    "exflow": "offload",
    "expert-offload": "offload",
    "expertflow": "offload",
    "experts-on-host": "offload",
    "fast-2bit-llm": "weights",
    "few-steps": "diffusion",
    "finequant": "weights",
    "flash-llm": "weights",
    "flexllm": "batching",
    "forcing-kv": "diffusion",
    "frugal": "finetuning",
    "gemfilter": "kv_policies",
    "gptq": "weights",
    "gptq-eager": "weights",
    "gqsa": "weights",
    "graft": "speculation",
    "guidance-distill-adapters": "finetuning",
    "h2o": "kv_policies",
    "hierarchicalprune": "diffusion",
    "hired": "kv_policies",
    "hybrimoe": "offload",
    "instaflow": "diffusion",
    "instinfer": "offload",
    "int2-1-emef": "finetuning",
    "kivi": "kv_cache",
    "kv-offload": "offload",
    "kvmerger": "kv_policies",
    "lisa": "finetuning",
    "llm-in-a-flash": "offload",
    "locret": "kv_policies",
    "longlora": "finetuning",
    "lora": "finetuning",
    "loram": "finetuning",
    "lq-lora": "finetuning",
    "lsh-moe": "offload",
    "lut-gemm": "weights",
    "marlin": "weights",
    "mikv": "kv_formats",
    "minference": "kv_policies",
    "minima": "weights",
    "moe-lens": "offload",
    "nanoflow": "batching",
    "nexus-intra-gpu-pd": "batching",
    "paca": "finetuning",
    "parallel-prompt-decoding": "speculation",
    "perp": "finetuning",
    "pockengine": "finetuning",
    "qlora": "finetuning",
    "qmoe": "weights",
    "qserve": "weights",
    "residual-guidance": "diffusion",
    "s-lora": "batching",
    "s2a": "finetuning",
    "sarathi": "batching",
    "scalekv": "diffusion",
    "sentencekv": "kv_policies",
    "shadowkv": "kv_policies",
    "similarity-filter": "diffusion",
    "slimfit": "finetuning",
    "smoothquant-plus": "weights",
    "soft-prune-int4": "diffusion",
    "speculative-decoding": "speculation",
    "spqr": "weights",
    "stage-offload": "diffusion",
    "stream-batch": "diffusion",
    "superpipeline": "batching",
    "triforce": "kv_policies",
    "vattention": "kv_policies",
    "vidkv": "kv_formats",
    "vq4dit": "diffusion",
    "windowkv": "kv_policies",
    "xquant": "kv_formats",
    "zipcache": "kv_formats",
    "zipvl": "kv_policies",
    "zo2": "finetuning",
}
_GROUP = "ridgecast.techniques"


def names() -> list[str]:
    """Ids of all techniques, ours and those of installed plug-ins."""
    return sorted({*_MODULES, *_plugins()})


def get(name: str) -> Technique:
    """Look up a technique. Raises SpecError with the nearest three ids."""
    key = name.strip().lower().replace("_", "-")
    if key in _MODULES:
        table: dict[str, Technique] = import_module(f".{_MODULES[key]}", __name__).TECHNIQUES
        return table[key]
    plugins = _plugins()
    if key in plugins:
        found = plugins[key].load()
        if not isinstance(found, Technique):
            raise SpecError(
                f"techniques: plug-in {key} gives {type(found).__name__}, need Technique"
            )
        return found
    raise SpecError(unknown_name("technique", name, names()))


def treatment_of(chosen: str | Sequence[str]) -> Treatment:
    """Apply techniques named as on the command line ("kivi:bits=4,marlin") to a neutral case."""
    text = chosen if isinstance(chosen, str) else ",".join(chosen)
    return apply_all([(get(name), given) for name, given in parse(text)])


def _plugins() -> dict[str, Any]:
    from importlib.metadata import entry_points

    found: dict[str, Any] = {}
    for point in entry_points(group=_GROUP):
        if point.name in _MODULES or point.name in found:
            raise SpecError(f"techniques: {point.name} is defined twice; rename the plug-in's")
        found[point.name] = point
    return found
