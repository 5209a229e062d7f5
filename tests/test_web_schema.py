"""Requests generated from the interface's description: no server error, answers as described.

Some carry names that ship in place of generated ones, which would mostly end at the first name.
"""

from __future__ import annotations

import pytest

pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ridgecast.report.questions_claims import domains_of_works
from ridgecast.web import create_app
from ridgecast.web.desk import ClaimsDesk
from ridgecast.web.names import choices
from ridgecast.web.sections import sections

NAMES = {
    "on": choices()["devices"], "against": choices()["devices"], "dtype": choices()["dtypes"],
    "kv_dtype": choices()["formats"], "model": choices()["models"],
    "engine": choices()["engines"], "technique": choices()["techniques"],
    "x": choices()["knobs"], "y": choices()["knobs"], "work": ("", "kivi", "marlin", "gpperf"),
    "domain": ("", *domains_of_works()), "hardware": ("", *choices()["devices"]),
    "what_if": ("clock=+10%", "memory.bandwidth=x2", "sm_count=-3", "rates=0.5"),
    "price": ("h100_sxm=2.5", "h200_sxm=0"), "config": ("MWG=64", "NWG=32"), "op": ("", "gemm"),
    "split": ("", "unseen_shape"), "table": ("", "parts", "steps", "front", "cells"),
}  # fmt: skip
LISTS = ("against", "technique", "what_if", "price", "config")
SAME = {"suppress_health_check": list(HealthCheck), "deadline": None, "derandomize": True}


@pytest.fixture(scope="module", autouse=True)
def no_background():
    """Works are not recomputed behind the back of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClaimsDesk, "_run", lambda desk: None)
        yield


def interface(*modes):
    """The interface as its document describes it, to be asked in some modes."""
    found = schemathesis.openapi.from_asgi("/api/openapi.json", create_app(hosts=("testserver",)))
    found.config.phases.coverage.enabled = False
    found.config.generation.modes = list(modes)
    return found


described = interface(GenerationMode.POSITIVE)
anything = interface(GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@schemathesis.check
def a_refusal_names_the_field_and_the_cure(ctx, response, case):
    if 400 <= response.status_code < 500:
        errors = response.json()["errors"]
        assert errors, "no error is told"
        for error in errors:
            assert all(error[part] for part in ("kind", "field", "message", "cure")), error


CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance, a_refusal_names_the_field_and_the_cure,
]  # fmt: skip


TABLES = (
    b"op,hardware,dtype,m,n,k\ngemm,h200_sxm,bf16,512,512,512\ngemm,x.toml,fp32,64,64,-4\n",
    b"op,hardware,dtype,m\ngemm,h200_sxm,bf16,512\n", b"op\n", b"op,op\n\"gemm",
)  # fmt: skip


def with_names(case, data):
    """Put names that ship, or a table, in the place of generated ones."""
    if case.path == "/api/predict":
        case.body, case.media_type = data.draw(st.sampled_from(TABLES)), "text/csv"
    section = next((s for s in sections() if s.endpoint == case.path), None)
    fields = section.question.model_fields if section else {}
    for field, ships in NAMES.items():
        if field in (case.query or {}) and (field in fields or field == "table"):
            many = isinstance(case.query[field], list) or field in LISTS
            name = st.sampled_from(ships)
            value = st.lists(name, min_size=1, max_size=3) if many else name
            case.query[field] = data.draw(value)


def asked(case):
    case.call_and_validate(checks=CHECKS)


@described.given(data=st.data())
@described.parametrize()
@settings(max_examples=10, **SAME)
def test_a_question_of_names_that_ship_is_answered_as_described(case, data):
    with_names(case, data)
    asked(case)


@anything.parametrize()
@settings(max_examples=10, **SAME)
def test_a_request_of_any_kind_is_answered_as_described(case):
    asked(case)


@pytest.mark.heavy
@described.given(data=st.data())
@described.parametrize()
@settings(max_examples=100, **SAME)
def test_a_thousand_questions_of_names_that_ship_are_answered_as_described(case, data):
    with_names(case, data)
    asked(case)


@pytest.mark.heavy
@anything.parametrize()
@settings(max_examples=100, **SAME)
def test_a_thousand_requests_of_any_kind_are_answered_as_described(case):
    asked(case)
