"""The page in a real browser: opened, used, read, and equal to the command line.

A problem anywhere fails the test that meets it: console errors (breaches of the content policy are
such), script errors, requests to another host. Screenshots go to pytest's folder, or to
RIDGECAST_SCREENSHOTS.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from ridgecast.cli.app import app as command_line
from ridgecast.report.figures import Axis, Figure, Panel, Series
from ridgecast.report.heat_view import knobs_of
from ridgecast.report.view import Fact, Facts, Rows, View, Words
from ridgecast.units import format_field, format_quantity
from ridgecast.web.sections import pages

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chromium-browser in PATH")

# claims last: the first look at them starts half a minute of recomputing on the server
NAMES = [*(n for n in pages() if n != "claims"), "claims"]
PLACES = {"accuracy": "?hardware=h200_sxm", "reports": "?number=0"}  # where there is more to see
WIDTHS = (380, 1280, 2560)
SETTLED = "!document.querySelector('[aria-busy=true], [data-waiting]')"
DRAWN = "[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))"
STUDY = View(
    "study", "A tiny study",
    (
        Facts((Fact("devices", "2"),)),
        Rows("cards", "Cards", [{"card": c, "time_s": t} for c, t in zip("abc", (3e-3, 1e-3, 2e-3),
                                                                         strict=True)]),
        Figure("times", "Times", "of each card", (Panel("t", Axis("n"), Axis("time", "s"),
                                                        (Series("a", [1, 2], [3, 4], "line"),)),)),
        Words(("measured twice",)),
    ),
    lead="two cards", command="ridgecast study",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a server in a process of its own, which shows one study."""
    data = tmp_path_factory.mktemp("reports") / "tiny" / "data"
    data.mkdir(parents=True)
    (data / "view.json").write_text(json.dumps(STUDY.to_dict()))
    command = [sys.executable, "-m", "ridgecast", "web", "--port", "0", "--no-browser"]
    server = subprocess.Popen(
        [*command, "--reports", str(data.parent.parent)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        line = server.stdout.readline()
        yield re.search(r"http://127\.0\.0\.1:\d+", line).group()
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = os.environ.get("RIDGECAST_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


class Visit:
    """One tab, its problems, and what a visitor does."""

    def __init__(self, browser, address, **options):
        size = options.pop("viewport", {"width": 1280, "height": 900})
        self.context = browser.new_context(viewport=size, accept_downloads=True, **options)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.address, self.problems = address, []
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", self._told)
        self.page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        self.context.on("request", self._asked)

    def _told(self, message):
        if message.type in ("error", "warning") and "status of 422" not in message.text:
            self.problems.append(f"console: {message.text}")

    def _asked(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.problems.append(f"request: {request.url}")

    def open(self, path):
        self.page.goto(self.address + path)
        self.settle()
        return self

    def settle(self):
        """Wait until nothing is asked any more, the pause after typing included."""
        self.page.wait_for_timeout(180)
        self.until(SETTLED)

    def until(self, expression):
        """Wait for an expression; the browser's own way is forbidden by the content policy."""
        for _ in range(400):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {expression}")

    def drawn(self):
        """Wait until every figure that has data shows it."""
        self.until(DRAWN)

    def fill(self, field, value):
        self.page.locator(f"#f-{field}").fill(str(value))
        self.settle()

    def choose(self, field, value):
        """Choose one of several names, be they a list or the suggestions of a text field."""
        place = self.page.locator(f"#f-{field}")
        if place.evaluate("(e) => e.tagName") == "SELECT":
            place.select_option(value)
        else:
            place.fill(value)
        self.settle()

    def add(self, field, value):
        self.page.locator(f"#f-{field}").fill(value)
        self.page.locator(f"#f-{field}").press("Enter")
        self.settle()

    def facts(self, section, which=0):
        """Numbers of a section as they stand there, by label."""
        place = self.page.locator(f"#view-{section} .facts").nth(which)
        return dict(zip(place.locator("dt").all_inner_texts(),
                        place.locator("dd:not(.note)").all_inner_texts(), strict=True))  # fmt: skip

    def cells(self, table):
        rows = self.page.locator(f"[data-table={table}] tbody tr")
        return [row.locator("td").all_inner_texts() for row in rows.all()]

    def commands(self, section):
        """What the button copies, line by line."""
        self.page.locator(f"#view-{section} [data-copy=command]").click()
        return self.page.evaluate("navigator.clipboard.readText()").splitlines()

    def query(self):
        return parse_qs(urlsplit(self.page.url).query)


@pytest.fixture
def visit(browser, address):
    found = Visit(browser, address)
    yield found
    found.context.close()
    assert found.problems == []


@pytest.fixture(scope="module", params=NAMES)
def opened(request, browser, address):
    """Every page in turn, opened once."""
    found = Visit(browser, address).open(f"/{request.param}{PLACES.get(request.param, '')}")
    if request.param == "table":
        found.page.locator("#example").click()
        found.page.wait_for_selector("[data-table=predictions]")
    if request.param == "claims":  # all of them are recomputed first
        done = "() => !document.body.innerText.includes('not recomputed yet')"
        found.page.wait_for_function(done, timeout=120_000)
        found.settle()
    found.drawn()
    found.name = request.param
    yield found
    found.context.close()
    assert found.problems == []


def said(line):
    """Run a command that the page shows; its document."""
    found = CliRunner().invoke(command_line, [*shlex.split(line)[1:], "--json"])
    assert found.exit_code == 0, found.output[-500:]
    return json.loads(found.stdout)


def quantities(document):
    """Numbers of a prediction as eyes read them."""
    return {name: format_quantity(document[f"{name}_{unit}"], name)
            for name, unit in (("time", "s"), ("power", "w"), ("energy", "j"))}  # fmt: skip


def part(of, **expected):
    return {name: of[name] for name in expected}


# ---------------------------------------------------------------------------- every page, looked at

# what both pens must draw alike: elements, classes, links and text, but not what figures hold
SHAPE = """(root) => {
  const shape = (node) => {
    if (node.nodeType === 3) return node.textContent.trim().replace(/\\s+/g, " ");
    if (node.nodeType !== 1 || node.matches(".panels, .downloads, .save")) return "";
    const kept = ["href", "data-definition", "data-table", "data-figure", "scope", "tabindex",
                  "role", "aria-label"].filter((n) => node.hasAttribute(n))
                  .map((n) => `${n}=${node.getAttribute(n)}`);
    const own = [...node.classList].filter((c) => c !== "wide").sort();
    const inside = [...node.childNodes].map(shape).flat().filter((x) => x !== "");
    return [[node.tagName, own.join("."), ...kept].join(" "), inside];
  };
  return shape(root);
}"""


def test_a_page_fits_every_width_and_both_colours(opened, pictures):
    page = opened.page
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)  # figures follow
        wide = page.evaluate("""() => [...document.querySelectorAll('body *')].filter((e) => {
            const box = e.getBoundingClientRect();
            return box.right > document.documentElement.clientWidth + 1 && box.width
              && !e.closest('.scroll, output.cmd, pre, .skip, svg, form.ask');
        }).slice(0, 5).map((e) => e.outerHTML.slice(0, 120))""")
        across = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(across) <= 0, wide
        assert wide == []
        page.screenshot(path=pictures / f"{opened.name}-{width}.png", full_page=width < 2000)
    page.set_viewport_size({"width": 1280, "height": 900})


# WCAG 2: contrast of text on what lies under it, in every visible element; figures are drawn
CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = (top, under) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map((i) => top[i] * a + under[i] * (1 - a));
  };
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (c) => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const paper = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(getComputedStyle(e).backgroundColor);
    return layers.reverse().map(numbers).reduce((under, top) => over(top, under), [127, 127, 127]);
  };
  const bad = [];
  let seen = 0;
  const judge = (element, style, text) => {
    const under = paper(element);
    const [a, b] = [light(over(numbers(style.color), under)), light(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    seen += 1;
    if (ratio >= (large ? 3 : 4.5)) return;
    bad.push([ratio.toFixed(2), text.trim().slice(0, 40), element.className, style.color]);
  };
  for (const element of document.querySelectorAll("body, body *")) {
    if (element.closest("svg, script, style, option, datalist")) continue;
    if (!element.checkVisibility({ checkVisibilityCSS: true })) continue;
    const style = getComputedStyle(element);
    const texts = [...element.childNodes].filter((n) => n.nodeType === 3);
    const own = texts.map((n) => n.textContent).join("");
    if (own.trim()) judge(element, style, own);
    if (!element.matches("input[type=text], input[type=number], select")) continue;
    judge(element, style, element.value);
    const hint = element.placeholder;
    if (hint) judge(element, getComputedStyle(element, "::placeholder"), hint);
  }
  return { seen, bad: bad.slice(0, 8) };
}"""


def test_text_can_be_read_in_both_colours(opened, pictures):
    page = opened.page
    grounds = []
    for theme in ("light", "dark"):
        while page.evaluate("document.documentElement.dataset.theme") != theme:
            page.locator("#theme").click()
        opened.drawn()
        found = page.evaluate(CONTRAST)
        assert found["seen"] > 20
        assert found["bad"] == []
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.screenshot(path=pictures / f"{opened.name}-{theme}.png", full_page=True)
    assert grounds[0] != grounds[1]
    page.locator("#theme").click()


# a change and its undoing, which asks for the same again
AGAIN = {
    "gemm": ("m", "4097", "4096"), "llm": ("isl", "2049", "2048"), "plan": ("osl", "513", "512"),
    "accuracy": ("dtype", "bf16", ""),
}  # fmt: skip


def test_both_pens_draw_the_same(opened):
    if opened.name not in AGAIN:
        pytest.skip("nothing to ask again")
    field, other, back = AGAIN[opened.name]
    place = opened.page.locator(f"#view-{opened.name} .answer")
    first = place.evaluate(SHAPE)
    opened.choose(field, other)
    assert place.evaluate(SHAPE) != first
    opened.choose(field, back)
    assert place.evaluate(SHAPE) == first


# what can be reached, and where the focus is: its element, its outline, how it begins
STOPS = """() => [...document.querySelectorAll(
    "a[href], button, input, select, summary, [tabindex='0']"
)].filter((e) => e.checkVisibility({ checkVisibilityCSS: true }) && !e.disabled).length"""
FOCUS = """() => {
  const e = document.activeElement;
  return [e.tagName, getComputedStyle(e).outlineStyle, e.outerHTML.slice(0, 90)];
}"""


def test_everything_can_be_reached_by_keyboard_and_shows_its_focus(opened):
    page = opened.page
    sought = min(page.evaluate(STOPS), 60)
    page.locator(".skip").focus()
    reached, hidden = 1, []
    for _ in range(sought - 1):
        page.keyboard.press("Tab")
        tag, outline, begins = page.evaluate(FOCUS)
        if tag == "BODY":
            break
        reached += 1
        if outline == "none":
            hidden.append(begins)
    assert hidden == []
    assert reached >= sought - 1


# ------------------------------------------------------------------------------------ each one used


def test_gemm_is_asked_again_with_each_change_and_says_what_the_command_says(visit, pictures):
    visit.open("/gemm")
    visit.fill("m", 300)
    visit.choose("on", "rtx_4070")
    visit.choose("dtype", "fp32")
    visit.add("against", "h100_sxm")
    found = quantities(said(visit.commands("gemm")[0]))
    assert part(visit.facts("gemm"), **found) == found
    assert visit.query() == {"m": ["300"], "on": ["rtx_4070"], "dtype": ["fp32"],
                             "against": ["h100_sxm"]}  # fmt: skip
    assert [row[0] for row in visit.cells("devices")] == ["rtx_4070", "h100_sxm"]
    ranked = said(visit.commands("tune")[0])["rows"]
    shown = visit.facts("tune")
    assert shown["time"] == format_quantity(ranked[0]["time_s"], "time")
    assert shown["energy"] == format_quantity(ranked[0]["energy_j"], "energy")
    assert len(visit.cells("ranking")) == len(ranked)
    facts = visit.facts("gemm")
    visit.page.reload()
    visit.settle()
    assert visit.facts("gemm") == facts
    assert visit.page.locator("#f-m").input_value() == "300"
    visit.drawn()
    visit.page.screenshot(path=pictures / "gemm-used.png", full_page=True)


def test_a_slider_changes_the_device_and_the_address(visit):
    visit.open("/gemm")
    slider = visit.page.locator("[data-field='memory.bandwidth']")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    visit.settle()
    assert visit.query()["what_if"] == ["memory.bandwidth=+20%"]
    line = visit.commands("gemm")[0]
    assert line.startswith("ridgecast explain")
    told = said(line)
    found = quantities(told)
    assert part(visit.facts("gemm"), **found) == found
    changed = visit.facts("gemm", 1)
    assert changed["time"] == format_quantity(told["what_if"][0]["time_s"], "time")
    visit.page.reload()
    visit.settle()
    assert slider.input_value() == "20"
    assert visit.facts("gemm", 1) == changed
    visit.page.locator(".sliders .reset").click()
    visit.settle()
    assert visit.query() == {}


def test_a_map_follows_its_knobs(visit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the command writes a page
    visit.open("/gemm?m=512")
    visit.choose("x", "k")
    visit.choose("show", "time")
    assert visit.query() == {"m": ["512"], "x": ["k"], "show": ["time"]}
    rows = said(visit.commands("heat")[0])[0]["answer"]["rows"]
    visit.page.locator("[data-table=cells] summary").click()
    assert len(visit.cells("cells")) == len(rows)
    assert visit.cells("cells")[0][2] == format_quantity(rows[0]["time_s"], "time")
    visit.drawn()
    with visit.page.expect_download() as download:
        visit.page.locator("[data-figure=heat] .save").click()
    assert download.value.suggested_filename.endswith(".png")


def test_a_map_offers_the_knobs_of_the_kernel_and_none_twice(visit):
    visit.open("/gemm?on=rtx_4070&dtype=fp32&kernel=tiled&x=tile&y=k")
    offered = "(e) => [...e.options].filter((o) => !o.disabled && !o.hidden).map((o) => o.value)"

    def knobs():
        return [visit.page.locator(f"#f-{axis}").input_value() for axis in "xy"]

    for kernel in ("cutlass_simt", "tiled", "library"):
        visit.choose("kernel", kernel)
        for axis in "xy":
            found = visit.page.locator(f"#f-{axis}").evaluate(offered)
            assert tuple(found) == knobs_of(kernel), kernel
        assert visit.page.locator("#view-heat .error").count() == 0, kernel
    assert knobs() == ["n", "k"]  # the edge of a tile went with the kernel that has one
    visit.choose("x", "k")
    assert knobs() == ["k", "n"] and visit.query()["y"] == ["n"]
    assert visit.page.locator("#view-heat .error").count() == 0
    visit.drawn()


def test_a_wrong_number_is_told_at_its_field_and_forgotten_when_it_is_right(visit):
    visit.open("/gemm")
    visit.fill("m", 0)
    assert "m: got '0'" in visit.page.locator("#view-gemm .error").inner_text()
    assert visit.page.locator("#f-m").get_attribute("aria-invalid") == "true"
    visit.fill("m", 512)
    assert visit.page.locator(".error").count() == 0
    assert visit.page.locator("#f-m").get_attribute("aria-invalid") is None
    found = quantities(said(visit.commands("gemm")[0]))
    assert part(visit.facts("gemm"), **found) == found


def test_a_model_is_planned_with_techniques(visit, pictures):
    visit.open("/llm")
    visit.fill("isl", 1024)
    visit.choose("on", "h200_sxm")
    visit.add("technique", "kivi")
    visit.add("technique", "marlin")
    assert visit.query() == {"isl": ["1024"], "on": ["h200_sxm"], "technique": ["kivi", "marlin"]}
    told = said(visit.commands("llm")[0])
    facts = visit.facts("llm")
    assert facts["TTFT"] == format_quantity(told["ttft_s"], "time")
    assert facts["TPOT"] == format_quantity(told["tpot_s"], "time")
    assert facts["memory"] == format_quantity(told["memory_bytes"], "bytes")
    assert facts["energy per token"] == format_quantity(told["energy_per_token_j"], "energy")
    steps = visit.cells("steps")
    lines = visit.commands("waterfall")
    assert len(steps) == len(lines) == 3
    assert format_quantity(said(lines[1])["tpot_s"], "time") in steps[1]
    limits = visit.facts("limits")
    assert limits["largest batch"] == str(said(visit.commands("limits")[0])["max_batch"])
    visit.page.locator("[aria-label='Remove kivi']").click()
    visit.settle()
    assert visit.query()["technique"] == ["marlin"]
    assert len(visit.cells("steps")) == 2
    visit.drawn()
    visit.page.screenshot(path=pictures / "llm-used.png", full_page=True)


def test_a_plan_is_the_one_of_the_command(visit):
    visit.open("/plan?on=h100_sxm&tp=4&tp=8&pp=1&model=llama-3.1-8b")
    visit.fill("tpot", "0.05")
    visit.add("price", "h100_sxm=2.5")
    best = said(visit.commands("plan")[0])["best"]
    facts = visit.facts("plan")
    assert facts["TPOT"] == format_quantity(best["tpot_s"], "time")
    assert facts["TTFT"] == format_quantity(best["ttft_s"], "time")
    visit.page.reload()
    visit.settle()
    assert visit.facts("plan") == facts


def test_scores_are_those_of_the_command(visit):
    visit.open("/accuracy")
    visit.choose("hardware", "h200_sxm")
    visit.choose("dtype", "bf16")
    sought = {"hardware": "h200_sxm", "dtype": "bf16", "bucket": "all"}
    every = said(visit.commands("accuracy")[0])["rows"]
    rows = [r for r in every if part(r, **sought) == sought]
    heads = visit.page.locator("[data-table=scores] th").all_inner_texts()
    at = heads.index("MAPE")
    shown = sorted(row[at] for row in visit.cells("scores"))
    assert shown == sorted(format_field("share", r["mape"]) or "–" for r in rows)


def test_a_report_is_opened_from_the_list_and_sorted(visit):
    visit.open("/reports")
    visit.page.locator("a", has_text="A tiny study").click()
    visit.settle()
    assert urlsplit(visit.page.url).query == "number=0"
    assert visit.facts("reports") == {"devices": "2"}
    heading = visit.page.locator("[data-table=cards] th").nth(1)
    for order, expected in (("ascending", ["1.00 ms", "2.00 ms", "3.00 ms"]),
                            ("descending", ["3.00 ms", "2.00 ms", "1.00 ms"])):  # fmt: skip
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == order
        assert [row[1] for row in visit.cells("cards")] == expected
    with visit.page.expect_download() as download:
        visit.page.locator("[data-table=cards] .downloads a", has_text="CSV").click()
    with open(download.value.path()) as file:
        assert [row["card"] for row in csv.DictReader(file)] == ["a", "b", "c"]


def test_a_table_is_sent_and_comes_back_predicted(visit, tmp_path, pictures):
    rows = "op,hardware,dtype,m,n,k\ngemm,h200_sxm,bf16,512,512,512\ngemm,nosuch,bf16,1,1,1\n"
    (tmp_path / "mine.csv").write_text(rows)
    visit.open("/table")
    visit.page.locator("#file").set_input_files(tmp_path / "mine.csv")
    visit.page.wait_for_selector("[data-table=predictions]")
    heads = visit.page.locator("[data-table=predictions] th").all_inner_texts()
    cells = [dict(zip(heads, row, strict=True)) for row in visit.cells("predictions")]
    expected = said("ridgecast predict gemm 512x512x512 --dtype bf16 --on h200_sxm")["time_s"]
    assert float(cells[0]["time_s"]) == pytest.approx(expected, rel=1e-3)
    assert [row["status"] for row in cells] == ["ok", "invalid"]
    visit.page.screenshot(path=pictures / "table-used.png", full_page=True)
    with visit.page.expect_download() as download:
        visit.page.locator("[data-save=csv]").click()
    with open(download.value.path()) as file:
        assert float(next(csv.DictReader(file))["time_s"]) == pytest.approx(expected)
    (tmp_path / "bad.json").write_text("[1]")
    visit.page.locator("#file").set_input_files(tmp_path / "bad.json")
    assert "body: need rows" in visit.page.locator("#view-table .error").inner_text()


# ------------------------------------------------------------------ keys, colours, words, no script


def test_keys_lead_to_the_question_and_out_of_it(visit):
    visit.open("/gemm")
    keys = visit.page.keyboard
    keys.press("/")
    assert visit.page.evaluate("document.activeElement.id") == "f-m"
    keys.press("Control+A")
    keys.type("640")
    keys.press("Tab")
    assert visit.page.evaluate("document.activeElement.id") == "f-n"
    visit.settle()
    assert visit.query() == {"m": ["640"]}
    keys.press("Escape")
    assert visit.page.evaluate("document.activeElement.tagName") == "BODY"
    visit.page.reload()
    keys.press("Tab")
    assert visit.page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    keys.press("Enter")
    keys.press("Tab")
    assert visit.page.evaluate("Boolean(document.activeElement.closest('main'))")


def test_the_chosen_colours_stay(visit):
    visit.page.emulate_media(color_scheme="light")
    visit.open("/gemm")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = visit.page.evaluate(paper)
    visit.page.locator("#theme").click()
    dark = visit.page.evaluate(paper)
    assert dark != light
    visit.open("/table")
    assert visit.page.evaluate(paper) == dark
    visit.page.locator("#theme").click()
    visit.page.emulate_media(color_scheme="dark")
    visit.open("/table")
    assert visit.page.evaluate(paper) == light


def test_definitions_show_on_hover_and_on_focus(visit):
    visit.open("/gemm")
    term = visit.page.locator("#view-gemm .facts .term").first
    told = term.get_attribute("data-definition")
    tip = visit.page.locator("[role=tooltip]")
    term.hover()
    assert tip.inner_text() == told
    visit.page.mouse.move(1, 1)
    assert tip.count() == 0
    term.focus()
    assert tip.inner_text() == told
    box = tip.bounding_box()
    assert 0 <= box["x"]
    assert box["x"] + box["width"] <= 1280
    visit.page.keyboard.press("Escape")
    assert tip.count() == 0


def test_what_is_copied_asks_the_same(visit):
    visit.open("/llm?isl=900")
    code = visit.page.locator("#view-llm [data-copy=python]")
    code.click()
    compile(visit.page.evaluate("navigator.clipboard.readText()"), "<page>", "exec")
    visit.page.locator("#view-llm [data-copy=address]").click()
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied == visit.page.url


@pytest.mark.parametrize("name", ["gemm", "llm", "accuracy"])
def test_a_page_answers_without_a_script(browser, address, name, pictures):
    visit = Visit(browser, address, java_script_enabled=False)
    page = visit.page
    page.goto(f"{address}/{name}")
    assert page.locator(f"#view-{name} .facts dd").count() > 3
    assert page.locator(f"#view-{name} table").count() > 0
    if name == "gemm":
        before = page.locator("#view-gemm .facts dd").first.inner_text()
        page.locator("#f-m").fill("300")
        page.locator("button.primary").click()
        assert parse_qs(urlsplit(page.url).query)["m"] == ["300"]
        assert page.locator("#view-gemm .facts dd").first.inner_text() != before
    page.screenshot(path=pictures / f"{name}-no-script.png", full_page=True)
    visit.context.close()
    assert visit.problems == []


# ---------------------------------------------------------------------------------- published works


def test_a_work_leads_to_the_scenario_behind_it(visit, pictures):
    visit.open("/claims?work=kivi")
    one = said(visit.commands("claims")[0])[0]
    assert visit.facts("claims")["verdict"] == one["verdict"]
    assert len(visit.cells("figures")) == 3
    visit.page.screenshot(path=pictures / "claims-work.png", full_page=True)
    link = visit.page.locator("[data-table=asked] tbody a").first
    path = link.get_attribute("href")
    link.click()
    visit.settle()
    assert visit.page.url == visit.address + path
    name = urlsplit(path).path.strip("/")
    found = said(visit.commands(name)[0])
    assert visit.facts(name)["memory"] == format_quantity(found["memory_bytes"], "bytes")


def test_works_are_filtered_and_opened(visit):
    visit.page.goto(visit.address + "/claims")
    visit.page.locator("[data-table=works] tbody tr").first.wait_for()
    visit.choose("domain", "gemm")
    visit.until("document.querySelectorAll('[data-table=works] tbody a').length > 0")
    assert visit.query() == {"domain": ["gemm"]}
    table = visit.page.locator("[data-table=works]")
    heads = table.locator("th").all_inner_texts()
    at = next((i for i, head in enumerate(heads) if head.startswith("domain")), None)
    if at is not None:
        assert {row[at] for row in visit.cells("works")} == {"gemm"}
    link = table.locator("tbody a").first
    title = link.inner_text()
    link.click()
    visit.settle()
    assert "work=" in visit.page.url
    assert title.split(":")[0] in visit.page.locator("#view-claims .answer").inner_text()
