"""What work is asked: shape and format in, operations and bytes out.

Imports only `units`, `dtypes` and `errors`; knows nothing about devices, kernels or time. Each
operation is loaded on first use; third parties add theirs through the entry point group
`ridgecast.ops` (name = "module:Class").
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ..errors import SpecError, unknown_name
from .attention import Attention
from .base import Op, Work
from .gemm import Gemm

__all__ = ["OPS", "Attention", "Gemm", "Op", "Work", "op_class", "op_names"]

# name -> "module:Class", modules of this package
OPS: dict[str, str] = {
    "gemm": "gemm:Gemm",
    "attention": "attention:Attention",
    "neighbourhood_attention": "neighbourhood:NeighbourhoodAttention",
    "ring_attention": "ring:RingAttention",
    "moe": "moe:Moe",
    "grouped_gemm": "grouped_gemm:GroupedGemm",
    "collective": "collective:Collective",
    "convolution": "convolution:Convolution",
    "long_convolution": "convolution:LongConvolution",
    "pointwise": "pointwise:Pointwise",
    "normalisation": "normalisation:Normalisation",
    "softmax": "softmax:Softmax",
    "embedding": "gather:Embedding",
    "reduction": "reduction:Reduction",
    "scan": "reduction:Scan",
    "sort": "reduction:Sort",
    "transpose": "transpose:Transpose",
    "quantise": "quantise:Quantise",
    "optimiser": "optimiser:Optimiser",
    "sampling": "sampling:Sampling",
    "low_bit_gemm": "low_bit:LowBitGemm",
    "sparse_gemm": "sparse:SparseGemm",
    "selective_scan": "state_space:SelectiveScan",
    "ssd": "state_space:Ssd",
    "recurrent": "recurrent:Recurrent",
    "spmm": "graph:SpMM",
    "spgemm": "graph:SpGemm",
    "neighbour_gather": "graph:NeighbourGather",
    "hash_probe": "hashing:HashProbe",
    "hash_encoding": "hashing:HashEncoding",
    "ray_marching": "rendering:RayMarching",
    "gaussian_splatting": "rendering:GaussianSplatting",
    "volume_grid": "rendering:VolumeGrid",
    "transfer": "host:Transfer",
    "launch": "host:Launch",
}
GROUP = "ridgecast.ops"


@lru_cache(maxsize=1)
def _found() -> dict[str, Any]:
    """Entry points of other packages by name. Raises SpecError for a name that is taken."""
    found: dict[str, Any] = {}
    for point in entry_points(group=GROUP):
        if point.name in OPS or point.name in found:
            raise SpecError(f"op {point.name!r} of {point.value} is already defined; rename it")
        found[point.name] = point
    return found


def op_names() -> list[str]:
    """Names of all operations, ours first."""
    return [*OPS, *_found()]


def op_class(name: str) -> Any:
    """Class of an operation: a subclass of `Op`, or `Gemm`.

    Raises SpecError with the nearest three names.
    """
    if name in OPS:
        module, _, attribute = OPS[name].partition(":")
        return getattr(import_module(f".{module}", __name__), attribute)
    if name in _found():
        return _found()[name].load()
    raise SpecError(unknown_name("op", name, op_names(), "`ridgecast ops` lists them."))
