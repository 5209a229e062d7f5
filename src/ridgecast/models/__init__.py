"""Networks as lists of operators, symbolic in batch, sequence and phase.

Owns what a network is (`Network`, `Weights`, `Cache`, `Call`), its families, and how one is read
from a Hugging Face config.json, from ONNX or from a torch module. Knows shapes, not formats, no
device and no time.
"""

from .network import Cache, Call, Layout, Network, Tokens, Weights

__all__ = ["Cache", "Call", "Layout", "Network", "Tokens", "Weights"]
