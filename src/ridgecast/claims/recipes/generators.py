"""What recipes of generators share: pipelines by name, treatments of one technique, times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from ...models.network import Network
from ...models.pipeline import Pipeline
from ...models.registry import get
from ...scenario import Generation, generate_all
from ...techniques import Treatment, apply_all
from ...techniques import get as technique

__all__ = ["applied", "only", "pipeline", "times_of"]


def applied(name: str, start: Treatment | None = None, **given: float) -> Treatment:
    """Apply one technique."""
    return apply_all([(technique(name), given)], start)


def pipeline(name: str) -> Pipeline:
    """Get a shipped pipeline."""
    return cast("Pipeline", get(name))


def times_of(cases: Sequence[Generation]) -> list[float]:
    """Seconds of many cases."""
    return [g.time for g in generate_all(cases)]


def only(pipe: Pipeline, network: Network | None = None) -> Pipeline:
    """Return a pipeline of the denoiser alone, with another network where one is given."""
    stage = pipe.stage("denoiser")
    stage = replace(stage, network=network) if network else stage
    return replace(pipe, stages=(stage,))
