"""ridgecast: how long GPU work takes, what it draws and what it costs, before it runs.

    >>> import ridgecast as rc
    >>> rc.Gemm(4096, 4096, 4096, dtype="bf16").flops
    137438953472.0

Owns the public names (`__all__`) and nothing else. Every name is loaded on first use, so that
`import ridgecast` costs a few milliseconds. `ridgecast.predict` and `ridgecast.hardware` are
rooms and verbs at once: `rc.predict(op, on=...)` is `ridgecast.predict.predict`, and
`rc.hardware("h200_sxm")` is `ridgecast.hardware.get`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dtypes import DType, dtype
    from .errors import (
        InfeasibleError,
        MeasurementError,
        MissingExtraError,
        NoDataError,
        OutOfDomainError,
        RidgecastError,
        SpecError,
        UnsupportedError,
    )
    from .hardware import Hardware
    from .hardware import get as hardware
    from .kernels import ClblastConfig, LibraryConfig, SimtConfig, TensorConfig, TiledConfig
    from .ops import Attention, Gemm, op_class
    from .ops.collective import Collective
    from .ops.convolution import Convolution
    from .ops.moe import Moe
    from .predict import Prediction, predict, predict_table
    from .predict.explain import Explanation, explain
    from .predict.train import train
    from .predict.tune import TuneResult, tune
    from .scenario import Scenario, Traffic, evaluate
    from .store import import_files, read_table, write_table
    from .units import format_quantity, parse_quantity

    __version__: str

# public name -> module that defines it (one literal dict, loaded on first use)
_EXPORTS = {
    "Attention": "ops",
    "ClblastConfig": "kernels",
    "Collective": "ops.collective",
    "Convolution": "ops.convolution",
    "DType": "dtypes",
    "Explanation": "predict.explain",
    "Gemm": "ops",
    "Hardware": "hardware",
    "InfeasibleError": "errors",
    "LibraryConfig": "kernels",
    "MeasurementError": "errors",
    "MissingExtraError": "errors",
    "Moe": "ops.moe",
    "NoDataError": "errors",
    "OutOfDomainError": "errors",
    "Prediction": "predict",
    "RidgecastError": "errors",
    "Scenario": "scenario",
    "SimtConfig": "kernels",
    "SpecError": "errors",
    "TensorConfig": "kernels",
    "TiledConfig": "kernels",
    "Traffic": "scenario",
    "TuneResult": "predict.tune",
    "UnsupportedError": "errors",
    "dtype": "dtypes",
    "evaluate": "scenario",
    "explain": "predict.explain",
    "format_quantity": "units",
    "import_files": "store",
    "op_class": "ops",
    "parse_quantity": "units",
    "predict_table": "predict",
    "read_table": "store",
    "train": "predict.train",
    "tune": "predict.tune",
    "write_table": "store",
}
# room -> the function that calling the room means (docs/adr/0003)
_VERBS = {"hardware": "get", "predict": "predict"}

__all__ = [
    "Attention",
    "ClblastConfig",
    "Collective",
    "Convolution",
    "DType",
    "Explanation",
    "Gemm",
    "Hardware",
    "InfeasibleError",
    "LibraryConfig",
    "MeasurementError",
    "MissingExtraError",
    "Moe",
    "NoDataError",
    "OutOfDomainError",
    "Prediction",
    "RidgecastError",
    "Scenario",
    "SimtConfig",
    "SpecError",
    "TensorConfig",
    "TiledConfig",
    "Traffic",
    "TuneResult",
    "UnsupportedError",
    "__version__",
    "dtype",
    "evaluate",
    "explain",
    "format_quantity",
    "hardware",
    "import_files",
    "op_class",
    "parse_quantity",
    "predict",
    "predict_table",
    "read_table",
    "train",
    "tune",
    "write_table",
]


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("ridgecast")
    elif name in _VERBS:
        return import_module(f".{name}", __name__)
    elif name in _EXPORTS:
        value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    else:
        raise AttributeError(f"module 'ridgecast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(globals()))


class _Verb(ModuleType):
    """A room that can be called."""

    def __call__(self, *args: object, **options: object) -> object:
        return getattr(self, _VERBS[self.__name__.rpartition(".")[2]])(*args, **options)


class _Package(ModuleType):
    """This package: makes its verb rooms callable when the import system binds them."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
