"""The page's server in process: what it refuses, what it never touches, and that it says what the
command line says."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import socket
import sys
from itertools import combinations
from typing import get_args
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("httpx")
pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq
from httpx import ASGITransport, AsyncClient

from ridgecast.claims import works
from ridgecast.cli.app import app as command_line
from ridgecast.errors import SpecError
from ridgecast.report import heat_view
from ridgecast.report.heat_view import KNOBS
from ridgecast.report.questions import HeatQuestion
from ridgecast.store import length, read_table
from ridgecast.web import create_app
from ridgecast.web.desk import ClaimsDesk
from ridgecast.web.guard import MOST_BODY, host_name
from ridgecast.web.run import serve
from ridgecast.web.sections import pages, sections
from ridgecast.web.uploads import MOST_COLUMNS, MOST_ROWS

GEMMS = b"op,hardware,dtype,m,n,k\ngemm,h200_sxm,bf16,512,512,512\ngemm,rtx_4070,fp32,64,64,64\n"
CSV = "text/csv"
STUDY = {
    "schema_version": 1, "view": "study", "title": "A tiny study", "lead": "two cards",
    "command": "ridgecast study", "python": "", "address": "", "footer": "", "pending": 0,
    "answer": None,
    "blocks": [
        {"kind": "words", "title": "", "tone": "plain", "listed": False, "texts": ["measured"]},
        {"kind": "table", "name": "cards", "title": "Cards", "caption": "", "group": "",
         "open": True, "links": [], "rows": [{"card": "a", "time_s": 1e-3}, {"card": "b"}],
         "cells": [["a", "1.00 ms"], ["b", "–"]],
         "columns": [{"key": "card", "heading": "card", "definition": "", "numeric": False},
                     {"key": "time_s", "heading": "time", "definition": "", "numeric": True}]},
    ],
}  # fmt: skip
# a question for every section, with what differs from its defaults
QUESTIONS = {
    "gemm": [{"m": "300", "against": "a100_sxm"}, {"what_if": ["clock=+10%", "sm_count=-20%"]},
             {"cache": "cold", "level": "0.8"}, {"on": "rtx_4070", "dtype": "fp32", "kernel":
              "tiled", "tile": "16"}],
    "advice": [{"m": "300", "level": "0.8"}],
    "heat": [{"x": "k", "y": "memory.bandwidth", "show": "time"}],
    "tune": [{"m": "300", "on": "rtx_4070", "dtype": "fp32", "top": "5"},
             {"what_if": ["clock=-50%"], "level": "0.8"}],
    "llm": [{"isl": "777", "technique": ["kivi", "marlin"]}, {"batch": "max", "tp": "4"}],
    "waterfall": [{"technique": ["kivi", "marlin"], "quantity": "memory"}],
    "limits": [{"tpot": "0.05"}],
    "plan": [{"on": "h100_sxm", "isl": "1024", "ttft": "2", "price": "h100_sxm=2.5"}],
    "claims": [{"work": "kivi"}, {"domain": "gemm"}],
    "accuracy": [{"hardware": "h200_sxm", "dtype": "bf16"}],
    "reports": [{}, {"number": "0"}],
}  # fmt: skip
EVERY = [(s, q) for s in sections() for q in QUESTIONS[s.name]]


def names_of(case):
    return f"{case.name}" if hasattr(case, "endpoint") else ",".join(case) or "plain"


every_question = pytest.mark.parametrize(("section", "asked"), EVERY, ids=names_of)


class Browser:
    """Requests to an application in process."""

    def __init__(self, app):
        self.app = app

    def __call__(self, method, path, **options):
        import asyncio

        async def run():
            transport = ASGITransport(app=self.app)
            async with AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **options)

        return asyncio.run(run())

    def get(self, path, **options):
        return self("GET", path, **options)

    def post(self, body, kind=CSV, query="", **options):
        headers = {"content-type": kind} if kind else {}
        return self("POST", f"/api/predict{query}", content=body, headers=headers, **options)


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A server that shows one study, and recomputes the first three works only."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "tiny" / "data").mkdir(parents=True)
    (folder / "tiny" / "data" / "view.json").write_text(json.dumps(STUDY))

    def few(desk):
        from ridgecast.claims import check

        for work in [w for w in works() if w.domain == "gemm"][:3]:
            desk._checked[work.id] = check(work.id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClaimsDesk, "_run", few)
        app = create_app(reports=(folder,))
        patch.setattr(ClaimsDesk, "checked", waiting(ClaimsDesk.checked))
        yield Browser(app)


def waiting(checked):
    def run(desk):
        checked(desk)
        desk._worker.join()
        return checked(desk)

    return run


def path_of(section, asked, **more):
    return f"{section.endpoint}?{urlencode({**asked, **more}, doseq=True)}"


def problems(reply):
    """Problems of a refusal, each of which says what is wrong and what to do."""
    assert 400 <= reply.status_code < 500, reply.text[:300]
    assert reply.headers["content-type"] == "application/json"
    found = reply.json()["errors"]
    assert found
    for problem in found:
        assert set(problem) == {"kind", "field", "message", "cure"}
        assert all(problem.values()), problem
    return found


def said(line):
    """Run a line of the page on the command line; its document."""
    found = CliRunner().invoke(command_line, [*shlex.split(line)[1:], "--json"])
    assert found.exit_code == 0, found.output[-500:]
    return json.loads(found.stdout)


# --------------------------------------------------------------------- who may ask, and from where


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.com",
                                  "", "[::1].evil.example", "localhost:80@evil.example", "0.0.0.0",
                                  "169.254.169.254", "localhost."])  # fmt: skip
@pytest.mark.parametrize("path", ["/gemm", "/api/gemm", "/assets/app.js", "/api/openapi.json"])
def test_other_hosts_are_refused(web, host, path):
    reply = web.get(path, headers={"host": host})
    assert reply.status_code == 421
    assert problems(reply)[0]["field"] == "host"
    assert "--allow-host" in reply.text


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1", "[::1]:80", "LOCALHOST"])
def test_hosts_of_this_machine_are_answered(web, host):
    assert web.get("/api/names", headers={"host": host}).status_code == 200


def test_a_named_host_is_answered_and_two_are_not():
    app = Browser(create_app(hosts=("bench.lab",)))
    assert app.get("/api/names", headers={"host": "bench.lab:80"}).status_code == 200
    two = [("host", "localhost"), ("host", "evil.example")]
    assert app.get("/api/names", headers=two).status_code == 421
    assert host_name("[::1") == ""


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:81", "file://",
                                    "http://[::1", "https://localhost.evil.example"])  # fmt: skip
def test_other_origins_are_refused(web, origin):
    for reply in (web.get("/api/gemm", headers={"origin": origin}),
                  web("POST", "/api/predict", content=GEMMS,
                      headers={"origin": origin, "content-type": CSV})):  # fmt: skip
        assert reply.status_code == 403
        assert problems(reply)[0]["field"] == "origin"


def test_the_page_itself_may_ask(web):
    at = {"host": "localhost:8765", "origin": "http://localhost:8765"}
    assert web.get("/api/names", headers=at).status_code == 200


@pytest.mark.parametrize("path", ["/gemm", "/api/gemm", "/api/gemm?m=0", "/nowhere",
                                  "/assets/app.js", "/"])  # fmt: skip
def test_every_answer_has_the_guarding_headers(web, path):
    reply = web.get(path)
    policy = dict(part.strip().split(" ", 1) for part in
                  reply.headers["content-security-policy"].split(";"))  # fmt: skip
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
    assert "unsafe-inline" not in str(policy)
    assert "unsafe-eval" not in str(policy)
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-frame-options"] == "DENY"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"


def test_pages_hold_nothing_that_the_policy_forbids_and_nothing_from_elsewhere(web):
    for name in pages():
        html = web.get(f"/{name}").text
        scripts = re.findall(r"<script([^>]*)>([^<]*)", html)
        assert all(" src=" in at or "application/json" in at for at, _ in scripts)
        assert not re.search(r"<[^>]+ (style|on[a-z]+)=", html)
        loaded = re.findall(r"(?:src|href|action)=\"([^\"#]+)", html)
        assert loaded
        assert all(at.startswith("/") and not at.startswith("//") for at in loaded)


def test_serving_binds_to_this_machine_and_says_what_is_wrong(tmp_path):
    import inspect

    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SpecError, match=r"--port: cannot bind .*--port 0"):
            serve(port=taken.getsockname()[1], browser=False)
    with pytest.raises(SpecError, match="--allow-host NAME"):
        serve(host="0.0.0.0", browser=False)
    with pytest.raises(SpecError, match="is not a folder"):
        serve(reports=(tmp_path / "none",), browser=False)


@pytest.mark.parametrize("kernel", get_args(HeatQuestion.model_fields["kernel"].annotation))
def test_every_knob_that_a_map_offers_is_accepted(web, kernel, monkeypatch):
    page = web.get(f"/gemm?kernel={kernel}").text
    offered = {}
    for axis in "xy":
        (control,) = re.findall(rf'<select id="f-{axis}".*?</select>', page)
        options = re.findall(r'<option value="(\S+)"([^>]*)>', control)
        offered[axis] = [name for name, more in options if "disabled" not in more]
    assert offered["x"] == offered["y"] and {"m", "clock"} < set(offered["x"]) < set(KNOBS)
    monkeypatch.setattr(heat_view, "_predicted", nothing_predicted)
    for x, y in combinations(offered["x"], 2):
        view = heat_view.heat_view(HeatQuestion(kernel=kernel, x=x, y=y))
        assert view.answer["rows"], (x, y)
    for knob in set(KNOBS) - set(offered["x"]):
        with pytest.raises(SpecError, match=f"knob of kernel {kernel}"):
            heat_view.heat_view(HeatQuestion(kernel=kernel, x=knob))


def nothing_predicted(rows, devices, q, model):
    names = ("time_s", "time_low_s", "time_high_s", "power_w", "energy_j", "edp_j_s",
             "utilisation", "rate_flops_per_s")  # fmt: skip
    words = {n: np.full(len(rows), "", object) for n in ("limiter", "basis", "status", "reason")}
    return {n: np.full(len(rows), np.nan) for n in names} | words


# --------------------------------------------------------------------------------- what is refused

BAD = [
    ("/api/gemm?m=0", "m"), ("/api/gemm?m=x", "m"), ("/api/gemm?m=", "m"), ("/api/gemm?mm=3", "mm"),
    ("/api/gemm?dtype=bf17", "dtype"), ("/api/gemm?on=h300", "on"),
    ("/api/gemm?against=h300", "against"), ("/api/gemm?layout=zz", "layout"),
    ("/api/gemm?kernel=zz", "kernel"), ("/api/gemm?tile=3", "tile"),
    ("/api/gemm?what_if=clock", "what_if"), ("/api/gemm?what_if=clok%3D%2B10%25", "what_if"),
    ("/api/gemm?config=a", "config"), ("/api/gemm?level=2", "level"),
    ("/api/gemm?level=nan", "level"), ("/api/gemm?format=xml", "format"),
    ("/api/gemm?table=zz&format=csv", "table"), ("/api/gemm?on=p4&dtype=nvfp4", "dtype"),
    ("/api/gemm/heat?x=zz", "x"), ("/api/gemm/heat?y=zz", "y"), ("/api/gemm/heat?x=m&y=m", "y"),
("/api/gemm?cache=cold&what_if=clock%3D%2B10%25", "cache"),
    ("/api/gemm/heat?show=zz", "show"), ("/api/gemm/tune?objective=zz", "objective"),
    ("/api/gemm/tune?top=0", "top"), ("/api/llm?model=zz", "model"), ("/api/llm?on=zz", "on"),
    ("/api/llm?engine=zz", "engine"), ("/api/llm?technique=zz", "technique"),
    ("/api/llm?technique=kivi:bits%3Dx", "technique"), ("/api/llm?batch=0", "batch"),
    ("/api/llm?tp=3", "tp"), ("/api/llm?devices=0", "devices"), ("/api/llm?dtype=zz", "dtype"),
    ("/api/llm?kv_dtype=zz", "kv_dtype"), ("/api/llm?isl=99999999", "isl"),
    ("/api/llm?prefix=1", "prefix"), ("/api/llm?price_per_h=nan", "price_per_h"),
    ("/api/llm?request_rate=1e9", "request_rate"), ("/api/llm/limits?tpot=-1", "tpot"),
    ("/api/llm/waterfall?quantity=zz", "quantity"), ("/api/plan?price=h100_sxm", "price"),
    ("/api/plan?price=zz%3D2", "price"), ("/api/plan?on=zz", "on"), ("/api/plan?tp=0", "tp"),
    ("/api/plan?engine=zz", "engine"), ("/api/plan?kv_dtype=zz", "kv_dtype"),
    ("/api/claims?work=kivy", "work"), ("/api/claims?domain=zz", "domain"),
    ("/api/claims?verdict=zz", "verdict"), ("/api/accuracy?hardware=zz", "hardware"),
    ("/api/accuracy?op=zz", "op"), ("/api/accuracy?split=zz", "split"),
    ("/api/accuracy?target=zz", "target"), ("/api/reports?number=9", "number"),
    ("/api/reports?number=../..", "number"), ("/api/nowhere", "path"), ("/nowhere", "path"),
    ("/assets/app.py", "path"), ("/assets/..%2fview.py", "path"), ("/api/predict", "path"),
    ("/api/gemm?m=" + "1" * 20_000, "query"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "field"), BAD, ids=[p[:60] for p, _ in BAD])
def test_a_bad_request_names_the_field_and_the_cure(web, path, field):
    assert field in [problem["field"] for problem in problems(web.get(path))]


@pytest.mark.parametrize(
    "path", ["/gemm?m=0", "/gemm?on=h300", "/llm?tp=3", "/plan?on=zz", "/claims?work=kivy",
             "/accuracy?op=zz", "/reports?number=9", "/gemm?nosuch=1"])  # fmt: skip
def test_a_page_says_what_is_wrong_and_keeps_its_form(web, path):
    reply = web.get(path)
    assert reply.status_code == 422
    assert re.search(r'<div class="error"><h3>[^<]+</h3>', reply.text)
    assert "</html>" in reply.text


def test_what_is_asked_cannot_become_markup(web):
    bad = '"><script>alert(1)</script>'
    for page, field in (("gemm", "on"), ("gemm", "what_if"), ("llm", "technique"),
                        ("claims", "text"), ("accuracy", "op"), ("gemm", "nosuch")):  # fmt: skip
        assert "<script>alert" not in web.get(f"/{page}?{field}={quote(bad)}").text


# -------------------------------------------------------------------------------------- uploads


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def chunks(count):
    """A body that does not say how long it is."""

    async def run():
        for _ in range(count):
            yield b"x" * 2**20

    return run()


ROWS = "\n".join(["op", *["gemm"] * (MOST_ROWS + 1)]).encode()
WIDE = ",".join(f"c{i}" for i in range(MOST_COLUMNS + 1)).encode()
TABLES = {
    "no media type": (GEMMS, None), "wrong media type": (GEMMS, "text/plain"),
    "form": (GEMMS, "multipart/form-data; boundary=x"), "empty": (b" \n", CSV),
    "no row": (b"op,hardware,dtype,m,n,k\n", CSV), "many rows": (ROWS, CSV),
    "many columns": (WIDE + b"\n" + WIDE, CSV),
    "very many columns": (b",".join([b"a"] * 1_000_000), CSV),
    "not text": (bytes(range(256)) * 40, CSV), "not utf-8": ("op,é\n1,é\n".encode("latin-1"), CSV),
    "no hardware": (b"op,dtype,m,n,k\ngemm,bf16,1,1,1\n", CSV),
    "no sizes": (b"op,hardware\ngemm,h200_sxm\n", CSV),
    "broken json": (b'[{"op": 1', "application/json"), "json number": (b"3", "application/json"),
    "json of numbers": (b"[1, 2]", "application/json"), "deep json": (b"[" * 99_999,
                                                                      "application/json"),
    "nested json": (b'[{"op": {"a": 1}}]', "application/json"),
    "json of many columns": (json.dumps([{f"c{i}": 1 for i in range(101)}]).encode(),
                             "application/x-ndjson"),
    "json of many rows": (b'{"op": 1}\n' * (MOST_ROWS + 1), "application/x-ndjson"),
    "half a surrogate": (b'[{"op": "\\ud800"}]', "application/json"),
    "broken parquet": (b"PAR1" + b"x" * 99 + b"PAR1", "application/vnd.apache.parquet"),
    "parquet of very many rows": (parquet(op=pa.nulls(30_000_000)), "application/octet-stream"),
    "parquet of long texts": (parquet(op=["x" * 10**5] * 300), "application/octet-stream"),
    "parquet of lists": (parquet(op=[[1] * 10**6]), "application/octet-stream"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_not_accepted_is_refused_before_it_is_unpacked(web, name):
    body, kind = TABLES[name]
    reply = web.post(body, kind)
    assert reply.status_code == 422
    assert {p["field"] for p in problems(reply)} <= {"body", "hardware"}


def test_a_body_that_is_too_long_is_refused_with_or_without_its_length(web):
    for body in (b"x" * (MOST_BODY + 1), chunks(6)):
        reply = web.post(body)
        assert reply.status_code == 413
        assert problems(reply)[0]["field"] == "body"
    lies = {"content-length": "9" * 5000, "content-type": CSV}
    assert web("POST", "/api/predict", content=b"", headers=lies).status_code == 413


@pytest.mark.parametrize("query", ["?level=2", "?level=x", "?format=html", "?format="])
def test_options_of_a_table_are_checked(web, query):
    assert problems(web.post(GEMMS, query=query))[0]["field"] == query[1:].partition("=")[0]


def test_a_table_is_predicted_as_the_command_line_does(web, tmp_path):
    given, done = tmp_path / "in.csv", tmp_path / "out.json"
    given.write_bytes(GEMMS)
    line = ["predict", "--table", str(given), "--out", str(tmp_path / "out.parquet")]
    assert CliRunner().invoke(command_line, line).exit_code == 0
    expected = read_table(tmp_path / "out.parquet")
    found = web.post(GEMMS).json()
    assert [row["status"] for row in found] == ["ok", "ok"]
    for name in ("time_s", "time_low_s", "time_high_s", "power_w", "energy_j", "bound_s"):
        assert [row[name] for row in found] == pytest.approx(expected[name].tolist())
    done.write_bytes(web.post(GEMMS, query="?format=csv").content)
    again = web.post(json.dumps(list(csv.DictReader(io.StringIO(GEMMS.decode())))).encode(),
                     "application/json").json()  # fmt: skip
    assert [row["time_s"] for row in again] == [row["time_s"] for row in found]
    packed = parquet(**read_columns(GEMMS))
    sent = web.post(packed, "application/octet-stream", "?format=parquet").content
    assert pq.read_table(io.BytesIO(sent))["time_s"].to_pylist() == [r["time_s"] for r in found]


def read_columns(text):
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    return {k: [int(r[k]) if k in "mnk" else r[k] for r in rows] for k in rows[0]}


def test_a_row_that_cannot_be_predicted_stops_no_other(web):
    body = GEMMS + b"gemm,h300,bf16,1,1,1\ngemm,h200_sxm,bf16,-1,1,1\nnosuch,h200_sxm,bf16,1,1,1\n"
    found = web.post(body).json()
    assert [row["status"] for row in found] == ["ok", "ok", "invalid", "invalid", "invalid"]
    assert all(row["reason"] for row in found[2:])


# ------------------------------------------------------- neither the file system nor the network

_opened: list[str] | None = None


def _hook(event, arguments):
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "import"):
        _opened.append(str(arguments[0]))


@contextlib.contextmanager
def watched(monkeypatch):
    """Paths that anything opens or looks at meanwhile: opening is audited, a look is not."""
    global _opened  # noqa: PLW0603 - an audit hook cannot be taken off, only told to listen
    if _opened is None and not getattr(_hook, "added", False):
        sys.addaudithook(_hook)
        _hook.added = True
    _opened = []
    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "access", "readlink"):
            patch.setattr(os, name, _told(getattr(os, name)))
        try:
            yield _opened
        finally:
            _opened = None


def _told(look):
    def run(path, *rest, **more):
        if _opened is not None:
            _opened.append(str(path))
        return look(path, *rest, **more)

    return run


def _texts(section):
    """Fields of a section that take words."""
    for name, info in section.question.model_fields.items():
        if "str" in str(info.annotation):
            yield name
    yield from ("table", "format")


def test_the_watch_sees_what_is_opened_and_what_is_looked_at(monkeypatch, tmp_path):
    path = tmp_path / "canary"
    with watched(monkeypatch) as seen:
        path.exists()
        path.write_text("x")
    assert len([p for p in seen if "canary" in p]) >= 2


@pytest.mark.parametrize("section", sections(), ids=lambda s: s.name)
def test_no_path_of_a_question_reaches_the_file_system(web, section, monkeypatch, tmp_path):
    canary = tmp_path / "canary.toml"
    canary.write_text("[hardware]\n")
    web.get(section.endpoint)
    paths = [str(canary), f"../../../../../..{canary}", f"file://{canary}", f"{canary}\0.json",
             "http://127.0.0.1:9/canary.json", "hf:canary/canary"]  # fmt: skip
    with watched(monkeypatch) as seen:
        for field in _texts(section):
            for path in paths:
                value = f"h100_sxm={path}" if field in ("price", "what_if", "config") else path
                reply = web.get(path_of(section, {field: value}))
                page = web.get(f"/{section.question.page}?{urlencode({field: value})}")
                assert reply.status_code < 500
                assert page.status_code < 500
    assert [p for p in seen if "canary" in p or "127.0.0.1" in p] == []


def test_no_path_of_a_table_reaches_the_file_system(web, monkeypatch, tmp_path):
    canary = tmp_path / "canary.toml"
    canary.write_text("[hardware]\n")
    web.post(GEMMS)
    columns = ["op", "hardware", "dtype", "kernel", "layout", "cache", "collection", "out_dtype",
               "model"]  # fmt: skip
    plain = {"op": "gemm", "hardware": "h200_sxm", "dtype": "bf16", "m": 1, "n": 1, "k": 1}
    rows = [
        plain | {name: path}
        for name in columns
        for path in (str(canary), "/etc/passwd.toml", "canary.TOML", f"file://{canary}")
    ]
    rows += [{"op": "attention", "hardware": str(canary)}]
    with watched(monkeypatch) as seen:
        reply = web.post(json.dumps(rows).encode(), "application/json")
    assert reply.status_code == 200
    assert [row["hardware"] for row in reply.json()] == [row["hardware"] for row in rows]
    assert [p for p in seen if "canary" in p or "passwd" in p] == []


@pytest.mark.parametrize("path", ["/assets/%2e%2e/view.py", "/assets//etc/passwd", "/../etc/passwd",
                                  "/assets/..%5cview.py", "/%2e%2e/%2e%2e/etc/passwd"])  # fmt: skip
def test_no_path_of_an_address_reaches_the_file_system(web, path, monkeypatch):
    with watched(monkeypatch) as seen:
        assert web.get(path).status_code == 404
    assert [p for p in seen if "passwd" in p or p.endswith("view.py")] == []


@every_question
def test_no_connection_is_opened(web, section, asked, monkeypatch):
    tried = []

    def refuse(*arguments, **_options):
        tried.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert web.get(path_of(section, asked)).status_code == 200
    assert web.get(f"/{section.question.page}?{urlencode(asked, doseq=True)}").status_code == 200
    assert web.post(GEMMS).status_code == 200
    assert tried == []


# ----------------------------------------------------------- the same answer as the command line


def view_of(web, section, asked):
    reply = web.get(path_of(section, asked))
    assert reply.status_code == 200, reply.text[:300]
    return reply.json()


COMMANDS = [(s, q) for s, q in EVERY if s.name not in ("reports", "accuracy") and q !=
            {"domain": "gemm"}]  # fmt: skip


@pytest.mark.parametrize(("section", "asked"), COMMANDS, ids=names_of)
def test_an_answer_is_what_its_command_prints(web, section, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a map is written as a page
    view = view_of(web, section, asked)
    found = [said(line) for line in view["command"].splitlines()]
    answer = view["answer"]
    if view["command"].startswith("ridgecast report"):
        assert found[0][0]["answer"] == answer
    elif section.name in ("waterfall", "limits"):
        assert found == (answer["steps"] if section.name == "waterfall" else list(answer.values()))
    else:
        assert found == [answer]


def test_scores_are_rows_of_the_table_that_the_command_prints(web):
    section, asked = next((s, q) for s, q in EVERY if s.name == "accuracy")
    view = view_of(web, section, asked)
    found = said(view["command"])
    rows = [r for r in found["rows"] if all(r[k] == v for k, v in asked.items())]
    assert rows
    assert view["answer"]["rows"] == rows
    kept = set(found) - {"rows", "created"}
    assert {k: view["answer"][k] for k in kept} == {k: found[k] for k in kept}


def test_works_are_those_of_the_command_that_are_recomputed_so_far(web):
    section, asked = next((s, q) for s, q in EVERY if q == {"domain": "gemm"})
    view = view_of(web, section, asked)
    assert [row["id"] for row in view["answer"]] == [w.id for w in works()
                                                     if w.domain == "gemm"][:3]  # fmt: skip
    assert view["pending"] > 0
    for row in view["answer"]:
        assert said(f"ridgecast claims {row['id']}") == [row]


def test_reports_are_those_of_the_folders(web):
    section = next(s for s in sections() if s.name == "reports")
    assert [row["report"] for row in view_of(web, section, {})["answer"]] == ["A tiny study"]
    view = view_of(web, section, {"number": "0"})
    assert view["title"] == "A tiny study"
    assert view["address"] == "/reports?number=0"


@every_question
def test_python_says_the_same(web, section, asked):
    code = view_of(web, section, asked)["python"]
    assert code or section.name == "reports" or "cache" in asked  # which only tables know
    compile(code, "<page>", "exec")


@every_question
def test_an_address_restores_its_question(web, section, asked):
    view = view_of(web, section, asked)
    assert view["address"].partition("?")[0] == f"/{section.question.page}"
    query = view["address"].partition("?")[2]
    assert view_of_address(web, section, query)["answer"] == view["answer"] or query == ""
    page = web.get(view["address"])
    assert page.status_code == 200
    first = pages()[section.question.page].sections[0]
    if section is first:
        held = re.search(r'<script type="application/json" class="first">(.*?)</script>', page.text)
        data = json.loads(held.group(1))
        assert {k: data[k] for k in ("command", "address", "title")} == {
            k: view[k] for k in ("command", "address", "title")
        }


def view_of_address(web, section, query):
    return web.get(f"{section.endpoint}?{query}").json()


@every_question
def test_tables_download_in_every_form_with_every_row(web, section, asked, tmp_path):
    view = view_of(web, section, asked)
    tables = [b for b in view["blocks"] if b["kind"] == "table"]
    assert tables or not view["answer"]
    for block in tables:
        count = {}
        for form in ("json", "csv", "parquet"):
            reply = web.get(path_of(section, asked, format=form, table=block["name"]))
            assert reply.status_code == 200, reply.text[:300]
            if form == "json":
                count[form] = len(reply.json())
                continue
            name = f"ridgecast-{section.name}-{block['name']}.{form}"
            assert name in reply.headers["content-disposition"]
            path = tmp_path / name
            path.write_bytes(reply.content)
            count[form] = length(read_table(path))
        assert set(count.values()) == {len(block["rows"])}, (block["name"], count)
    whole = web.get(path_of(section, asked, format="html"))
    assert whole.text.startswith("<!doctype html>")
    assert view["title"].split("<")[0] in whole.text.replace("&#39;", "'")
    markup = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", whole.text, flags=re.DOTALL)
    assert not re.search(r"<[^>]+ (?:src|href)=", markup)


def test_what_the_interface_offers_is_described(web):
    document = web.get("/api/openapi.json").json()
    assert {s.endpoint for s in sections()} <= set(document["paths"])
    for section in sections():
        given = {p["name"]: p for p in document["paths"][section.endpoint]["get"]["parameters"]}
        assert set(section.question.model_fields) | {"format", "table"} == set(given)
        assert all(p.get("description") or p["schema"].get("description") for p in given.values())
    assert {"devices", "models", "techniques"} <= set(web.get("/api/names").json())
    assert len(web.get("/api/glossary").json()) > 50
