"""How the work is run: tiles, occupancy, waves, traffic per memory level, fixed costs."""

from .occupancy import OCCUPANCY_LIMITERS, Occupancy, occupancy
from .problem import Problem, problem

__all__ = ["OCCUPANCY_LIMITERS", "Occupancy", "Problem", "occupancy", "problem"]
