"""Providers: what can run a point on a device, by name, loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...errors import SpecError, unknown_name
from ..base import Provider

__all__ = ["PROVIDERS", "get_provider"]

# name -> "module:class"; a provider's constructor takes keyword options only (device index ...)
PROVIDERS: dict[str, str] = {
    "blas": "ridgecast.measure.providers.blas:Blas",
    "numba": "ridgecast.measure.providers.numba_cpu:NumbaCpu",
    "opencl": "ridgecast.measure.providers.opencl:OpenCl",
    "cuda": "ridgecast.measure.providers.cuda:Cuda",
    "torch": "ridgecast.measure.providers.torch_library:TorchLibrary",
    "triton": "ridgecast.measure.providers.triton_matmul:TritonMatmul",
    "cutlass": "ridgecast.measure.providers.cutlass:Cutlass",
    "replay": "ridgecast.measure.providers.replay:Replay",
}


def get_provider(name: str, **options: Any) -> Provider:
    """Build a provider. Raises SpecError with the nearest names for an unknown one.

    Building never touches the device or imports its library: `probe` does.
    """
    if name not in PROVIDERS:
        raise SpecError(unknown_name("provider", name, PROVIDERS))
    module, _, attribute = PROVIDERS[name].partition(":")
    return getattr(import_module(module), attribute)(**options)
