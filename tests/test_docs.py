"""The glossary defines every public field once; every command and formula has its page."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ridgecast.cli.app import app
from ridgecast.hardware import Hardware, Link, MemoryLevel, SmLimits, Source, load
from ridgecast.ops import Gemm
from ridgecast.predict import Prediction
from ridgecast.store import COLUMNS, CONFIG_COLUMNS

DOCS = Path(__file__).resolve().parents[1] / "docs"
GLOSSARY = DOCS.parent / "src" / "ridgecast" / "report" / "assets" / "glossary.md"
UNIT = re.compile(r"_(s|bytes|j|w|hz|flops)$")
OUTPUT = (
    "time_s time_low_s time_high_s power_w power_low_w power_high_w energy_j energy_low_j "
    "energy_high_j memory_bytes bound_s limiter basis status reason"
).split()


def glossary_terms() -> list[str]:
    text = GLOSSARY.read_text(encoding="utf-8")
    blocks = re.findall(r":::\{glossary\}\n(.*?)\n:::", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and line[0] != " "]


def term_of(field: str) -> str:
    """Term that defines a column: without its unit, and without the end of an interval."""
    return re.sub(r"_(low|high)$", "", UNIT.sub("", field))


def test_every_term_is_defined_once():
    terms = glossary_terms()
    assert len(terms) > 80 and len(terms) == len(set(terms))


def test_public_fields_are_in_the_glossary():
    classes = (Gemm, Hardware, MemoryLevel, SmLimits, Link, Source, Prediction)
    fields = [f.name for cls in classes if dataclasses.is_dataclass(cls)
              for f in dataclasses.fields(cls) if not f.name.startswith("_")]  # fmt: skip
    terms = set(glossary_terms())
    wanted = {*fields, *COLUMNS, *CONFIG_COLUMNS, *OUTPUT}
    missing = sorted(f for f in wanted if f not in terms and term_of(f) not in terms)
    assert not missing


def test_every_command_has_its_section():
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"```{{command-help}} {command.name}\n" in text


def test_theory_pages_say_formula_symbols_source_and_code():
    pages = sorted((DOCS / "theory").glob("*.md"))
    assert len(pages) >= 12
    for page in pages:
        if page.stem == "index":
            continue
        text = page.read_text(encoding="utf-8")
        for part in ("$$", "**Source.**", "**Code.**", "|---|"):
            assert part in text, f"{page.name} lacks {part}"
        assert page.stem in (DOCS / "theory" / "index.md").read_text(encoding="utf-8")


def test_documentation_states_no_accuracy_figure():
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8").partition("<!-- accuracy:begin -->")[0]
        assert not re.search(r"(MAPE|mean error)[^.\n]{0,40}\d+(\.\d+)? ?%", text), page.name


def test_the_example_device_loads():
    hw = load(DOCS.parent / "examples" / "my_device.toml")
    assert (hw.name, hw.memory.bandwidth, hw.l2.capacity) == ("my_device", 6e12, 80 * 2**20)
    assert hw.sources["memory.bandwidth"].kind == "assumed"


def test_links_between_pages_lead_somewhere():
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([\w./-]+\.md)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
