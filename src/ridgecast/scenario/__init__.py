"""Models on machines under traffic: memory, batch that fits, latency, power, energy and cost.

Owns formats by role, the lowering of calls to predictions, memory, engines and the solver. Gains of
techniques come out here: they change the work, and the solver finds what follows.
"""

from .case import Answer, Scenario, Traffic
from .effect import effect_of
from .engine import Engine, engine, engine_names
from .formats import Formats, formats_of
from .generate import Generated, Generation, generate, generate_all, stage_memory
from .host import Host
from .inverse import largest_batch_within, longest_context
from .passes import Machine, Pass, run_pass
from .solve import Points, evaluate, largest_batch, memory_at, solve_points
from .words import document_of, scenario_of

__all__ = [
    "Answer",
    "Engine",
    "Formats",
    "Generated",
    "Generation",
    "Host",
    "Machine",
    "Pass",
    "Points",
    "Scenario",
    "Traffic",
    "document_of",
    "effect_of",
    "engine",
    "engine_names",
    "evaluate",
    "formats_of",
    "generate",
    "generate_all",
    "largest_batch",
    "largest_batch_within",
    "longest_context",
    "memory_at",
    "run_pass",
    "scenario_of",
    "solve_points",
    "stage_memory",
]
