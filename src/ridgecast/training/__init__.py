"""Training: what a step holds in memory, and how long it takes.

Owns memory by component (weights, gradients, optimiser states, activations) and the time of one
step from its forward pass. Published methods arrive as treatments.
"""

from .memory import Activations, Plan, TrainingMemory, activations_of, training_memory
from .step import Step, step_time

__all__ = [
    "Activations",
    "Plan",
    "Step",
    "TrainingMemory",
    "activations_of",
    "step_time",
    "training_memory",
]
