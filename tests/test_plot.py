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
    "compare": ("compare", "llama-3.1-8b@h100_sxm", "llama-3.1-8b@h200_sxm+kivi"),
    "measure": ("measure", "gemm", "48x32x16", "--provider", "blas"),
    "mix": ("plan", "serve", "llama-3.1-8b", "--on", "h100_sxm,l4", "--mix",
            "1024:256:10,8192:512:2", "--tp", "1", "--pp", "1", "--batches", "6"),
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


def answered_and_drawn(folder, *words):
    """JSON of a command, and the figures of the page that it wrote, by name."""
    done = run(*words, "--json", "--plot", folder / "out.html")
    page = (folder / "out.html").read_text(encoding="utf-8")
    (held,) = re.findall(r'<script type="application/json" class="data">(.*?)</script>', page)
    return done, json.loads(done.stdout), {f["name"]: f for f in json.loads(held)["figures"]}


def test_two_cases_are_drawn_as_they_were_answered(tmp_path):
    _, said, drawn = answered_and_drawn(tmp_path, *COMMANDS["compare"])
    tpot = drawn["speed"]["panels"][1]
    (bars,) = tpot["series"]
    for ending, column in (("", "y"), ("_low", "low"), ("_high", "high")):
        for case, value in zip("ab", bars[column], strict=True):
            assert value == pytest.approx(1e3 * said[case][f"tpot_s{ending}"], rel=1e-5)
    assert tpot["x"]["unit"] == "ms" and "× " in bars["labels"][1]
    cost = drawn["means"]["panels"][2]["series"][0]  # no price of an h200_sxm is known
    assert (cost["y"][1], cost["labels"][1]) == (said["b"]["cost_per_million_tokens_usd"],
                                                 "not known")  # fmt: skip
    one, two = drawn["passes"]["panels"][0]["series"]
    longest = max(said["parts"], key=lambda p: max(p["a_s"], p["b_s"]))
    seconds = [longest["a_s"], longest["b_s"]]
    assert [one["y"][0] / 1e3, two["y"][0] / 1e3] == pytest.approx(seconds, rel=1e-5)


def test_a_case_that_does_not_fit_is_said_not_drawn(tmp_path):
    words = ("compare", "llama-3.1-70b@h100_sxm", "llama-3.1-70b@h100_sxm:4")
    _, said, drawn = answered_and_drawn(tmp_path, *words)
    assert not said["a"]["fits"]
    for panel in (*drawn["speed"]["panels"], *drawn["means"]["panels"][:3]):
        (bars,) = panel["series"]
        assert bars["y"][0] is None and bars["labels"][0] == "does not fit" and bars["y"][1] > 0
    assert "does not fit: needs" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_a_fleet_is_drawn_by_kind_of_request(tmp_path):
    _, said, drawn = answered_and_drawn(tmp_path, *COMMANDS["mix"])
    kinds = list(said["counts"])
    replicas = drawn["replicas"]["panels"][0]["series"]
    for i, kind in enumerate(kinds):  # busy and to spare are all of them
        assert sum(s["y"][i] for s in replicas) == pytest.approx(said["counts"][kind])
        busy = sum(s["y"][i] for s in replicas if s["name"] != "to spare")
        assert busy / said["counts"][kind] == pytest.approx(said["busy"][kind])
    served = drawn["served"]["panels"][0]["series"]
    assert [sum(s["y"][i] for s in served) for i in range(2)] == pytest.approx([10.0, 2.0])
    cost, power = drawn["means"]["panels"]
    assert sum(cost["series"][0]["y"]) == pytest.approx(said["cost_usd_per_h"])
    factor = {"W": 1.0, "kW": 1e3}[power["x"]["unit"]]
    assert factor * sum(power["series"][0]["y"]) == pytest.approx(said["power_w"], rel=1e-5)
    alone = drawn["alone"]["panels"][0]
    costs = sorted(c for c in said["cost_alone_usd_per_h"].values() if c is not None)
    assert alone["series"][0]["y"] == pytest.approx([said["cost_usd_per_h"], *costs])
    assert alone["series"][1]["x"] == pytest.approx([said["bound"]] * 2)


def test_a_measured_point_is_drawn_with_its_spread_or_says_why_not(tmp_path):
    _, said, drawn = answered_and_drawn(tmp_path, *COMMANDS["measure"])
    time, power, energy = drawn["beside"]["panels"]
    factor = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[time["x"]["unit"]]
    (bars,) = time["series"]
    for column, key in (("y", "time_s"), ("low", "time_p10_s"), ("high", "time_p90_s")):
        assert factor * bars[column][0] == pytest.approx(said[key], rel=1e-5)
    assert "--energy" in power["reason"] and "--energy" in energy["reason"]
    assert "Not predicted: unknown hardware" in drawn["beside"]["caption"]
    done, said, drawn = answered_and_drawn(tmp_path, *COMMANDS["measure"], "--kernel", "nosuch")
    assert done.exit_code == 4 and said["status"] == "refused" and not drawn
    done = run(*COMMANDS["measure"], "--kernel", "nosuch", "--plot", tmp_path / "none.png")
    assert done.exit_code == 4 and not (tmp_path / "none.png").exists()
    done = run(*COMMANDS["measure"], "--dry-run", "--plot", tmp_path / "none.png")
    assert done.exit_code == 2 and "leave out --dry-run" in done.stderr


def test_a_sweep_is_drawn_with_what_failed(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('provider = "blas"\n[[grid]]\nkernel = ["library", "nosuch"]\nm = [8, 16]\n'
                    "[protocol]\ntime_cap = 0.01\n")  # fmt: skip
    words = ("measure", plan, "--out", tmp_path / "out")
    _, said, drawn = answered_and_drawn(tmp_path, *words)
    points, why = drawn["status"]["panels"]
    counts = {s["name"]: sum(s["y"]) for s in points["series"]}
    assert counts == {"ok": said["ok"], "refused": said["refused"]} == {"ok": 2, "refused": 2}
    assert why["series"][0]["y"] == list(said["reasons"].values())
    (series,) = drawn["time_by_size"]["panels"][0]["series"]
    assert len(series["y"]) == 2 and all(a <= b <= c for a, b, c in zip(
        series["low"], series["y"], series["high"], strict=True))  # fmt: skip


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
