"""How the work is run: tiles, occupancy, waves, traffic per memory level, fixed costs.

Owns the analytic kernel models and the speed-of-light bound, vectorised over shapes and
configurations. Imports `hardware` and `ops`; nothing here is fitted to a measurement.
"""

from .bound import bound
from .clblast import clblast
from .config import ClblastConfig, LibraryConfig, SimtConfig, TensorConfig, TiledConfig
from .cost import LIMITERS, KernelCost
from .library import LibraryCost, candidates, library, library_time
from .occupancy import OCCUPANCY_LIMITERS, Occupancy, occupancy
from .problem import Problem, problem
from .spaces import clblast_space, simt_space, tensor_space, tiled_space
from .tile import simt, tensor
from .tiled import tiled

__all__ = [
    "LIMITERS",
    "OCCUPANCY_LIMITERS",
    "ClblastConfig",
    "KernelCost",
    "LibraryConfig",
    "LibraryCost",
    "Occupancy",
    "Problem",
    "SimtConfig",
    "TensorConfig",
    "TiledConfig",
    "bound",
    "candidates",
    "clblast",
    "clblast_space",
    "library",
    "library_time",
    "occupancy",
    "problem",
    "simt",
    "simt_space",
    "tensor",
    "tensor_space",
    "tiled",
    "tiled_space",
]
