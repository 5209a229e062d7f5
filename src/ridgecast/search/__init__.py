"""Searching: many points through a function, the best of them, the fleet that serves a load.

    run             points through a function, in chunks, on this machine or a Ray cluster; resumes
    non_dominated   the rows of which no other is better in everything
    plan_fleet      which devices, how many, and who serves what

Knows nothing of what the function computes.
"""

from __future__ import annotations

from .engine import run
from .fleet import Bucket, DeviceType, Fleet, plan_fleet
from .pareto import front, non_dominated

__all__ = ["Bucket", "DeviceType", "Fleet", "front", "non_dominated", "plan_fleet", "run"]
