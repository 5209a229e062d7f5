"""Refusals as JSON: which field, what is wrong with it, what to do next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from ..errors import (
    InfeasibleError,
    NoDataError,
    OutOfDomainError,
    RidgecastError,
    SpecError,
    UnsupportedError,
)
from ..report.questions import wrong_fields

__all__ = ["Problem", "Problems", "problems_of", "problems_of_fields"]

_MOST = 20  # problems of one request
_NO_ANSWER = (UnsupportedError, OutOfDomainError, NoDataError, InfeasibleError)
_FIELD = re.compile(r"^([a-z_][a-z0-9_.]*(?:\[[^\]]*\])?):")
_UNKNOWN = re.compile(r"^(?:.*?: )?unknown (?:field |parameter )?(?:of )?([a-z_ ]+?) '")
_CURES = re.compile(r"(?:nearest: |need |allowed: |Allowed: |use |write |try |choose |ask |"
                    r"give |list them|run |measure |say |add |shorten |split |send |"
                    r"it multiplies )",
                    re.IGNORECASE)  # fmt: skip
_NAMED = {"hardware": "on", "device": "on", "model": "model", "format": "dtype", "dtype": "dtype",
          "technique": "technique", "kernel": "kernel", "engine": "engine"}  # fmt: skip


class Problem(BaseModel):
    """What is wrong with one field of a request, and the cure."""

    kind: str = Field(description="usage (asked wrongly), no answer, or refused.")
    field: str = Field(description="The field that is meant, or `question` for their combination.")
    message: str = Field(description="What was got, and what is allowed.")
    cure: str = Field(description="What to do next.")


class Problems(BaseModel):
    """Why a request has no answer."""

    errors: list[Problem]


def problems_of(error: RidgecastError, fields: Sequence[str]) -> dict[str, Any]:
    """Document of an error of ours; the field is named by its message where it names one."""
    text = str(error)
    kind = "usage" if isinstance(error, SpecError) else "no answer"
    if not isinstance(error, (SpecError, *_NO_ANSWER)):
        kind = "refused"
    found = Problem(kind=kind, field=_field(text, fields), message=text, cure=_cure(text))
    return {"errors": [found.model_dump()]}


def _field(text: str, fields: Sequence[str]) -> str:
    match = _FIELD.match(text)
    if match:
        named = match.group(1)
        for part in (named, named.rpartition(".")[2], named.partition("[")[0],
                     named.partition(".")[0]):  # fmt: skip
            if part in fields:
                return part
    if "dtype" in fields and " has no unit for " in text:
        return "dtype"
    unknown = _UNKNOWN.match(text)
    if unknown:
        word = unknown.group(1).split()[-1]
        if _NAMED.get(word, word) in fields:
            return _NAMED.get(word, word)
    return next((f for f in fields if len(f) > 2 and re.search(rf"\b{f}\b", text)), "question")


def _cure(text: str) -> str:
    """Part of a message that says what to do: from where it first says what is allowed."""
    match = _CURES.search(text)
    return text[match.start() :] if match else "change the question as the message says"


def problems_of_fields(
    errors: Sequence[Mapping[str, Any]], fields: Sequence[str]
) -> dict[str, Any]:
    """Document of what validation found wrong, a problem a field; of many the first ones."""
    found = [Problem(kind="usage", field=field, message=message, cure=cure).model_dump()
             for field, message, cure in wrong_fields(errors[:_MOST], fields)]  # fmt: skip
    return {"errors": found}
