"""Pictures beside the answers: every command that has a figure draws it; notebooks show values."""

from __future__ import annotations

import builtins
import json
import re
import xml.etree.ElementTree as ET

import pytest
from typer.testing import CliRunner

import ridgecast as rc
from ridgecast.cli.app import app
from ridgecast.errors import MissingExtraError
from ridgecast.report import Axis, Figure, Heat, Panel, Series
from ridgecast.richtext import table

GEMM = ("gemm", "512x512x512", "--on", "h200_sxm")
COMMANDS = {
    "predict": ("predict", *GEMM),
    "explain": ("explain", *GEMM, "--what-if", "clock=+10%"),
    "operation": ("explain", "attention", "batch=4", "q_heads=32", "kv_heads=8", "head_dim=128",
                  "q_len=1", "kv_len=2048", "--on", "h100_sxm"),
    "tune": ("tune", *GEMM),
    "llm": ("llm", "llama-3.1-8b", "--on", "h100_sxm"),
    "plan": ("plan", "serve", "llama-3.1-8b", "--on", "h100_sxm", "--tp", "1", "--pp", "1",
             "--batches", "6"),
    "accuracy": ("accuracy",),
    "claims": ("claims", "--domain", "moe"),
    "claim": ("claims", "kivi"),
}  # fmt: skip


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_draw_what_they_answer(name, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.svg"
    done = run(*COMMANDS[name], "--json", "--plot", path)
    assert done.exit_code == 0, done.stderr
    json.loads(done.stdout)
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    assert root.tag.endswith("svg") and len(list(root.iter())) > 100
    assert [p.name for p in tmp_path.iterdir()] == ["out.svg"]


def test_png_is_a_picture_with_something_on_it(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    path = tmp_path / "out.PNG"
    assert run("explain", *GEMM, "--plot", path).exit_code == 0
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = pyplot.imread(str(path))
    assert min(pixels.shape[:2]) > 300 and 0.01 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.8


def test_html_holds_its_figures_and_loads_nothing(tmp_path):
    path = tmp_path / "out.html"
    assert run("explain", *GEMM, "--plot", path).exit_code == 0
    page = path.read_text(encoding="utf-8")
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.findall(r"""\b(?:src|href|srcset)\s*=\s*["']?\s*(?:https?:)?//""", markup)
    assert not re.findall(r"<script[^>]+\bsrc\b|<link[^>]+\bhref\b", page)
    assert "roofline" in page


def test_a_wrong_suffix_or_folder_is_refused_before_any_work(tmp_path):
    done = run("explain", *GEMM, "--plot", tmp_path / "out.pdf")
    assert done.exit_code == 2 and ".png or .svg or .html" in done.stderr and not done.stdout
    done = run("claims", "--plot", tmp_path / "none" / "out.png")
    assert done.exit_code == 2 and "does not exist" in done.stderr


def test_without_matplotlib_the_cure_is_named(monkeypatch):
    from ridgecast.report.render import png_bytes

    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    figure = Figure("f", "Title", "Caption", (Panel("p", series=(Series("s", [1], [2]),)),))
    with pytest.raises(MissingExtraError, match=r"ridgecast\[plot\]"):
        png_bytes(figure)
    assert "<table" in figure._repr_html_() and "Caption" in figure._repr_html_()


def test_every_style_of_series_and_heat_draws():
    pytest.importorskip("matplotlib")
    from ridgecast.report.render import svg_text

    long = tuple(f"a rather long name of category {i} that must be cut" for i in range(5))
    bars = Series("bars", range(5), [1, 2, None, 4, 5], "bars", [0.5] * 5, [6] * 5)
    panels = (
        Panel("h", Axis("x", "s"), Axis("", "", "category", long), (bars,), horizontal=True),
        Panel("s", Axis("", "", "category", ("a", "b")), Axis("y"),
              tuple(Series(f"part {i}", [0, 1], [1, 2], "stack", base=[i, i]) for i in range(8))),
        Panel("l", Axis("x", "", "log2"), Axis("y", "s", "log"),
              (Series("line", [1, 2, 4], [1, 2, 3], "both", labels=["a", "", "c"]),
               Series("limit", [1, 4], [2, 2], "guide"))),
    )  # fmt: skip
    values = [[1.0, 20.0], [None, 300.0]]
    heats = tuple(Panel(s, heat=Heat(("r", "s"), ("c", "d"), values, "time", "ms", s, (1, 1)))
                  for s in ("signed", "linear", "log"))  # fmt: skip
    text = svg_text([Figure("one", "One", "", panels), Figure("two", "Two", "", heats)])
    assert {"One", "Two", "limit", "part 7"} <= {e.text for e in ET.fromstring(text).iter()}


def test_notebooks_show_values_escaped_and_without_scripts():
    told = rc.explain(rc.Gemm(512, 512, 512), "h200_sxm")
    found = rc.tune(rc.Gemm(512, 512, 512, dtype="fp32"), "rtx_4070", kernel="tiled")
    answer = rc.evaluate(rc.Scenario("llama-3.1-8b", "h100_sxm"))
    for value in (told.prediction, told, found, answer):
        text = value._repr_html_()
        ET.fromstring(text.replace("&nbsp;", " "))  # tags close
        assert "<table" in text and "<script" not in text
    assert "&lt;b&gt;" in table([{"name": "<b>"}]) and table([]) == ""
    assert "1 more rows" in table([{"n": i} for i in range(31)])
