"""Published works as views: the command line's own answers, and the way back to the models."""

from __future__ import annotations

import json
import shlex
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

import ridgecast as rc
from ridgecast.claims import check, check_all, evaluate, works
from ridgecast.claims.asked import record
from ridgecast.claims.recipes import RECIPES
from ridgecast.cli.app import app
from ridgecast.errors import SpecError
from ridgecast.predict.observe import observing
from ridgecast.report.claims_view import claim_view, claims_page, claims_view
from ridgecast.report.questions import GemmQuestion, LlmQuestion
from ridgecast.report.questions_claims import ClaimsQuestion, works_asked


def printed(command):
    done = CliRunner().invoke(app, [*shlex.split(command)[1:], "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def question_of(address, kind):
    parts = urlsplit(address)
    assert parts.path == f"/{kind.page}"
    given = parse_qs(parts.query)
    lists = ("technique", "config", "what_if", "against")
    return kind(**{k: v if k in lists else v[0] for k, v in given.items()})


@pytest.mark.parametrize(
    "q",
    [ClaimsQuestion(work="kivi"), ClaimsQuestion(domain="graph"),
     ClaimsQuestion(text="asymmetric cache"),
     ClaimsQuestion(domain="convolution", verdict="contradicted")],
)  # fmt: skip
def test_the_answer_is_what_the_command_prints(q):
    view = claims_page(q)
    plain = view.to_dict()
    assert plain["answer"] == printed(view.command)
    assert question_of(view.address, ClaimsQuestion) == q
    json.dumps(plain, allow_nan=False)


def test_works_are_chosen_before_any_is_recomputed(monkeypatch):
    monkeypatch.setattr(evaluate, "recipe_of", None)
    assert [w.id for w in works_asked(ClaimsQuestion())] == [entry.id for entry in works()]
    assert [w.id for w in works_asked(ClaimsQuestion(text="KIVI asymmetric"))] == ["kivi"]
    with pytest.raises(SpecError, match="moe"):
        works_asked(ClaimsQuestion(domain="mae"))


def test_a_part_of_the_works_says_how_many_are_left_and_draws_its_own():
    q = ClaimsQuestion(domain="llm-inference")
    view = claims_view(check_all(["kivi", "h2o", "gpperf"]), q=q)
    assert [one["id"] for one in view.answer] == ["kivi", "h2o"]
    left = len(works_asked(q)) - 2
    assert any(f"{left} more works" in t for b in view.to_dict()["blocks"]
               for t in b.get("texts", ()))  # fmt: skip
    (series,) = [s for s in view.figures["agreement"].panels[0].series if s.name == "reproduced"]
    at = next(i for i, told in enumerate(series.hover) if told.startswith("kivi: peak memory"))
    line = check("kivi").figures[0]
    assert series.x[at] == pytest.approx(line.published)
    assert (series.low[at], series.high[at]) == line.recomputed
    stacked = view.figures["domains"].panels[0].series
    assert sum(sum(s.y) for s in stacked) == 2


def test_links_ask_what_the_recipe_asked():
    rows = claim_view("kivi").table("asked").rows
    q = question_of(rows[1]["address"], LlmQuestion)
    assert (q.model, q.on, q.engine, q.technique) == (
        "llama-2-7b", "a100_sxm", "hf", ["kivi:residual=32"],
    )  # fmt: skip
    asked = record("kivi").asked[1].source
    said = rc.evaluate(asked)
    scenario = rc.Scenario(q.model, q.on, q.devices, engine=q.engine,
                           techniques=",".join(q.technique),
                           traffic=rc.Traffic(q.isl, q.osl, int(q.batch)))  # fmt: skip
    assert rc.evaluate(scenario).tpot == said.tpot
    (row,) = claim_view("gpperf").table("asked").rows
    q = question_of(row["address"], GemmQuestion)
    assert (q.m, q.dtype, q.on, q.kernel, q.tile) == (4096, "fp32", "rtx_4070", "tiled", 32)
    assert "tile 8 to 32" in row["sizes"]
    apart = claim_view("h2o").table("asked").rows[0]
    assert (apart["address"], apart["note"]) == (None, "none: a host of its own")


def test_listening_changes_no_answer_and_ends_with_its_block():
    plain = check("marlin").to_dict()
    found = record("marlin")
    assert found.checked.to_dict() == plain
    assert found.function.endswith("quantisation.marlin") and found.words
    of = {(one.what, one.of) for one in found.asked}
    assert ("latency and throughput", "llama-2-70b") in of
    assert ("time by physics", "low_bit_gemm") in of
    heard = []
    with observing(lambda kind, *_: heard.append(kind)):
        rc.predict(rc.Gemm(64, 64, 64), on="h200_sxm")
    rc.predict(rc.Gemm(64, 64, 64), on="h200_sxm")
    assert heard == ["predict"]


@pytest.mark.heavy
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_tells_what_it_asks(name):
    view = claim_view(name)
    json.dumps(view.to_dict(), allow_nan=False)
    for row in view.tables["asked"].rows if "asked" in view.tables else ():
        if row["address"]:
            kind = {"/llm": LlmQuestion, "/gemm": GemmQuestion}[urlsplit(row["address"]).path]
            question_of(row["address"], kind)
