"""Generators as stages: text encoders, a denoiser called many times, a decoder.

Owns `Stage` and `Pipeline`. What lives on a device at which time is scenario's matter; the stages
say what there is. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import SpecError, unknown_name
from .image import Canvas, ImageNetwork
from .network import Amount, Cache, Call, Layout, Network, Tokens, Weights
from .pieces import merged

__all__ = ["Pipeline", "Stage"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One network of a pipeline and how often it runs.

    `passes` calls a picture or clip, each over `samples` of it (2: both halves of guidance at
    once). `tokens`: text tokens of a sample (0: as the canvas says). `offloadable`: it is not
    needed while others run and may wait in host memory.
    """

    name: str
    network: Network
    passes: float = 1.0
    offloadable: bool = True
    samples: int = 1
    tokens: int = 0

    def group(self, canvas: Canvas) -> Any:
        """Return what one pass of this stage sees: a `Canvas`, or `Tokens` of a text encoder."""
        batch = canvas.batch * self.samples
        if isinstance(self.network, ImageNetwork):
            text = self.tokens or canvas.text_tokens
            return replace(canvas, batch=batch, text_tokens=text)
        length = self.tokens or canvas.text_tokens
        if not np.all(np.asarray(length) > 0):
            raise SpecError(f"stage {self.name}: canvas.text_tokens is 0 and it has no length")
        return Tokens(batch, length, length, 0.0)

    def calls(self, canvas: Canvas, layout: Layout) -> list[Call]:
        """Operations of all its passes for one canvas; `phase` is the stage."""
        one = self.network.calls([self.group(canvas)], layout)
        return [replace(c, count=c.count * self.passes, phase=self.name) for c in one]


@dataclass(frozen=True, slots=True)
class Pipeline(Network):
    """From a prompt to a picture or clip: `stages` in order.

    `steps` of the sampler, each with `guidance` evaluations of the denoiser (2: classifier-free
    guidance, Ho and Salimans 2022, arXiv:2207.12598; 1: none, or distilled). The denoiser's stage
    has them multiplied out: passes x samples = steps x guidance (x chunks). `canvas` is what it is
    published for.
    """

    stages: tuple[Stage, ...]
    steps: int = 1
    guidance: int = 1
    canvas: Canvas = field(default_factory=Canvas)

    def __post_init__(self) -> None:
        if not self.stages:
            raise SpecError(f"{self.name}.stages: a pipeline needs at least one stage")
        if self.steps < 1 or self.guidance not in (1, 2):
            raise SpecError(
                f"{self.name}: got steps {self.steps}, guidance {self.guidance}; need at least 1 "
                "step and 1 or 2 evaluations a step"
            )

    def stage(self, name: str) -> Stage:
        """Return the stage of that name. Raises SpecError with the nearest three."""
        for s in self.stages:
            if s.name == name:
                return s
        raise SpecError(unknown_name("stage", name, [s.name for s in self.stages]))

    def with_steps(self, steps: int, guidance: int | None = None) -> Pipeline:
        """Return the pipeline with another number of denoising steps (and evaluations a step)."""
        wanted = guidance or self.guidance
        stages = list(self.stages)
        for i, s in enumerate(stages):
            if s.name == "denoiser":
                evaluations = s.passes * s.samples / (self.steps * self.guidance) * steps * wanted
                samples = s.samples if wanted == self.guidance else 1
                stages[i] = replace(s, passes=evaluations / samples, samples=samples)
        return replace(self, stages=tuple(stages), steps=steps, guidance=wanted)

    def weights(self) -> tuple[Weights, ...]:
        """List weights of all stages, each network once; parts are named by stage."""
        seen: list[Network] = []
        found: list[Weights] = []
        for s in self.stages:
            if s.network not in seen:
                seen.append(s.network)
                found += [replace(w, part=f"{s.name} {w.part}") for w in s.network.weights()]
        return tuple(found)

    def caches(self) -> tuple[Cache, ...]:
        """List what the denoiser keeps between passes."""
        return tuple(c for s in self.stages for c in s.network.caches())

    def calls(self, groups: Sequence[Any], layout: Layout) -> list[Call]:
        """Operations of whole pictures or clips: all passes of all stages over each `Canvas`."""
        found: list[Call] = []
        for s in self.stages:  # layouts are refused without groups too
            s.network.calls((), layout)
        for g in groups:
            if not isinstance(g, Canvas):
                raise SpecError(f"{self.name}: got {type(g).__name__}, a pipeline needs a Canvas")
            found += [c for s in self.stages for c in s.calls(g, layout)]
        return merged(found)

    def activations(self, tokens: Any, layout: Layout) -> Amount:
        """Elements of transient memory of the stage that needs most of it, over a `Canvas`."""
        each = [s.network.activations(_tokens(s.group(tokens)), layout) for s in self.stages]
        peak = np.max(np.stack(np.broadcast_arrays(*map(np.asarray, each))), axis=0)
        return float(peak) if peak.ndim == 0 else peak


def _tokens(group: Any) -> Any:
    return group.count if isinstance(group, Tokens) else group
