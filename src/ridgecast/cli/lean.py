"""Start-up of commands: LightGBM without the libraries that it only wraps."""

from __future__ import annotations

import sys
from importlib import import_module

__all__ = ["lean_lightgbm"]

_WRAPPED = ("sklearn", "pandas", "dask", "matplotlib", "graphviz", "pyarrow")


def lean_lightgbm() -> None:
    """Import LightGBM as if scikit-learn, pandas and the like were not installed.

    It imports whichever of them there are, for wrappers that no command uses, and that takes longer
    than a prediction. Only for a process of our own: a library must not do this to its users.
    """
    if "lightgbm" in sys.modules:
        return
    hidden = [name for name in _WRAPPED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # an import of it raises ImportError
    try:
        import_module("lightgbm")
    finally:
        for name in hidden:
            del sys.modules[name]
