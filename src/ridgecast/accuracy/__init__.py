"""Accuracy: what the predictions are worth on rows that no fit has seen.

Owns the accuracy table: scores by device, format, split and size, next to a plain roofline, a
derated one and the label floor. Reads models and measurements; fits only through `predict.train`.
"""

from __future__ import annotations

from .floor import consensus_score, floor_of
from .report import AccuracyReport
from .verb import run

__all__ = ["AccuracyReport", "consensus_score", "floor_of", "run"]
