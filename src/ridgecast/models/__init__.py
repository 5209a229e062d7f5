"""Networks as lists of operators, symbolic in batch, sequence and phase.

Owns what a network is (`Network`, `Weights`, `Cache`, `Call`), its families, and how one is read
from a Hugging Face config.json, from ONNX or from a torch module. Knows shapes, not formats, no
device and no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .network import Cache, Call, Layout, Network, Tokens, Weights
from .registry import aliases, get, load, names, shipped

if TYPE_CHECKING:
    from .onnx_import import from_onnx
    from .torch_import import from_torch

__all__ = ["Cache", "Call", "Layout", "Network", "Tokens", "Weights", "aliases", "from_onnx",
           "from_torch", "get", "load", "names", "shipped"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load the importers of graphs on first use."""
    from importlib import import_module

    if name in ("from_onnx", "from_torch"):
        return getattr(import_module(f".{name[5:]}_import", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
