"""What work is asked: shape and format in, operations and bytes out.

Imports only `units`, `dtypes` and `errors`; knows nothing about devices, kernels or time.
"""

from .gemm import Gemm

__all__ = ["Gemm"]
