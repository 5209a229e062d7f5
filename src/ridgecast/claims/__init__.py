"""What the literature claims about efficient GPU and AI work, and what the models here make of it.

Owns the ledger of published works (`ledger`), the rules by which a recomputed figure agrees with a
published one (`verdict`), and the recipes that recompute them (`recipes`, run by `evaluate`).
Every recipe asks the same models as any user; none carries a constant of its own for a claim.
"""

from __future__ import annotations

from .evaluate import Checked, Line, check, check_all
from .ledger import Figure, Work, work, works
from .verdict import Finding, NotModelled, Property

__all__ = [
    "Checked",
    "Figure",
    "Finding",
    "Line",
    "NotModelled",
    "Property",
    "Work",
    "check",
    "check_all",
    "work",
    "works",
]
