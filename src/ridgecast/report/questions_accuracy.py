"""The question of the accuracy page: which scores of a model folder to look at.

The fields, their bounds and how to ask the same elsewhere, as in `questions`. Knows no answers.
"""

from __future__ import annotations

import shlex
from typing import ClassVar, Literal

from pydantic import Field

from .questions import SHORT, Name, Question, shown

__all__ = ["AccuracyQuestion"]


class AccuracyQuestion(Question):
    """Scores on held-out rows, with the name of their split; an empty field takes all."""

    page: ClassVar[str] = "accuracy"

    target: Literal["", "time", "time_operator", "time_config", "power", "energy"] = Field(
        "", description="What is predicted: time of library GEMMs, of other operations, of "
        "configurations, power or energy.",
        **shown("Predicted", "select", "Models", options="scored_targets"),
    )  # fmt: skip
    hardware: Name = Field("", max_length=SHORT, description="Device.",
                           **shown("Device", "select", "Models",
                                    options="scored_devices"))  # fmt: skip
    dtype: Name = Field("", max_length=SHORT, description="Number format of the operands.",
                        **shown("Format", "select", "Models",
                                 options="scored_dtypes"))  # fmt: skip
    op: Name = Field("", max_length=SHORT, description="Operation; `attention` takes its kinds.",
                     **shown("Operation", "select", "Models", options="scored_ops"))  # fmt: skip
    split: Name = Field("", max_length=SHORT, description="How rows were held out.",
                        **shown("Split", "select", "Split", options="scored_splits"))  # fmt: skip

    @property
    def filters(self) -> dict[str, str]:
        """Columns of the accuracy table that are asked for, with their values."""
        return {name: str(value) for name, value in self.asked().items()}

    def command(self) -> str:
        """`accuracy`, with the options that choose the same rows."""
        words = ["ridgecast", "accuracy"]
        for name, value in self.filters.items():
            words += [f"--{_OPTIONS.get(name, name)}", value]
        return shlex.join(words)

    def python(self) -> str:
        """`ridgecast.accuracy.run`, and the rows that are asked for."""
        named = ", ".join(f"{name}={value!r}" for name, value in self.filters.items())
        return "\n".join([
            "from ridgecast.accuracy import run",
            "",
            f"rows = run(){f'.only({named})' if named else ''}.rows",
            "for r in rows:",
            '    print(r["hardware"], r["split"], r["mape"], r["coverage"])',
        ])  # fmt: skip


_OPTIONS = {"hardware": "on"}
