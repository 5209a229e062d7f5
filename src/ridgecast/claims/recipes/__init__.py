"""Recipes: how each work's figures are recomputed; a family of works a module.

Each recipe is a function without arguments that returns findings (`claims.verdict`). It asks the
same models as any user, sweeps the parameters that the source leaves open, and carries no constant
of its own but what the source states or another source measured, cited beside it.
"""

from __future__ import annotations

__all__ = ["RECIPES"]

# id of the work -> "module:function" (one literal dict, loaded on first use)
RECIPES: dict[str, str] = {
}  # fmt: skip
