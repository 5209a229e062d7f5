"""Every registered operation, and a plugin, keep to what `ridgecast.testing.check_op` asks."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest

from ridgecast import ops
from ridgecast.errors import SpecError
from ridgecast.ops.base import Op, Rule, Work, choice, fmt, plain, size
from ridgecast.testing import check_op, example_fields

DOCS = Path(__file__).resolve().parents[1] / "docs" / "ops"


@pytest.mark.parametrize("name", list(ops.OPS))
def test_registered(name):
    module = ops.OPS[name].partition(":")[0]
    if find_spec(f"ridgecast.ops.{module}") is None:
        pytest.skip(f"ops/{module}.py is not written yet")
    check_op(name)


@dataclass(frozen=True)
class Stencil(Op):
    """Five-point stencil over a grid, as in a made-up paper (Nobody 2020)."""

    name: ClassVar[str] = "stencil"
    what: ClassVar[str] = "five-point stencil"
    example: ClassVar[str] = "rows=64 cols=32 variant=twice"

    rows: int = size("rows of the grid")
    cols: int = size("columns of the grid")
    dtype: str = fmt("format of the grid", "fp32")
    variant: str = choice("how often memory is passed", ("once", "twice"), "once")

    def rules(self) -> Iterator[Rule]:
        """Allow grids with an inside."""
        yield Rule("rows", np.less(self.rows, 3), "3 or more")

    def work(self) -> Work:
        """Nine operations a point."""
        points = np.multiply(self.rows, self.cols) * 1.0
        passes = 2.0 if self.variant == "twice" else 1.0
        return Work({"vector": plain(9.0 * points)}, plain(4.0 * points * passes),
                    plain(4.0 * points))  # fmt: skip


class Uncited(Stencil):
    """No source."""


class Undescribed(Stencil):
    """Nobody 2020."""

    rows: int = size(" ")


class BadExample(Stencil):
    """Nobody 2020."""

    example: ClassVar[str] = "rows=2 cols=32"


class NoField(Stencil):
    """Nobody 2020."""

    example: ClassVar[str] = "rows=64 columns=32"


class Negative(Stencil):
    """Nobody 2020."""

    def work(self) -> Work:
        """Negative bytes."""
        return Work({}, -1.0, 0.0)


class Shrinking(Stencil):
    """Nobody 2020."""

    def work(self) -> Work:
        """Fewer bytes of more columns."""
        return Work({}, plain(np.divide(self.rows, self.cols)))


class Allowed(Shrinking):
    """Nobody 2020."""

    not_monotone: ClassVar[tuple[str, ...]] = ("cols",)


class BySum(Stencil):
    """Nobody 2020."""

    def work(self) -> Work:
        """One number for all rows of a table."""
        return Work({"vector": float(np.sum(self.rows))})


class StrangeUnit(Stencil):
    """Nobody 2020."""

    def work(self) -> Work:
        """A unit that no machine has."""
        return Work({"tensor": 1.0})


class Lenient(Stencil):
    """Nobody 2020."""

    def __post_init__(self) -> None:
        pass


class LargeFootprint(Stencil):
    """Nobody 2020."""

    def work(self) -> Work:
        """More distinct bytes than bytes."""
        return Work({}, 1.0, 1.0, footprint=3.0)


def frozen(cls: type[Op]) -> type[Op]:
    return dataclass(frozen=True)(cls)


def test_a_good_operation_passes():
    check_op(Stencil)
    check_op(frozen(Allowed))
    assert example_fields(Stencil) == {"rows": 64, "cols": 32, "variant": "twice"}


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (Undescribed, r"\['rows'\] have no description"),
        (BadExample, "example is refused: stencil.rows: got 2, need 3 or more"),
        (NoField, "'columns=32' is no field=value"),
        (Negative, "read is -1.0, need 0 or more"),
        (Shrinking, r"stencil\.cols: doubling it in .* lowers operations plus bytes from 2 to 1"),
        (BySum, r"flops\[vector\] is 64.0, but"),
        (StrangeUnit, r"\['tensor'\] are no units"),
        (Lenient, "is not refused"),
        (LargeFootprint, "footprint 3.0 exceeds the bytes moved 2.0"),
        (dict, "is no subclass of Op"),
    ],
)
def test_a_breach_is_told(cls, told):
    with pytest.raises(AssertionError, match=told):
        check_op(cls if cls is dict else frozen(cls))


def test_a_source_is_asked_for(monkeypatch):
    module = ModuleType("sourceless")
    monkeypatch.setitem(sys.modules, "sourceless", module)
    monkeypatch.setattr(Uncited, "__module__", "sourceless")
    with pytest.raises(AssertionError, match="no docstring cites a source"):
        check_op(frozen(Uncited))


def test_an_operation_must_be_frozen():
    class Bare(Stencil):
        """Nobody 2020."""

    with pytest.raises(AssertionError, match=r"need @dataclass\(frozen=True\)"):
        check_op(Bare)


@pytest.fixture
def plugin(monkeypatch):
    """Install entry points for the length of a test; gives the function that does so."""
    module = ModuleType("made_up_plugin")
    monkeypatch.setattr(module, "Stencil", Stencil, raising=False)
    monkeypatch.setitem(sys.modules, "made_up_plugin", module)

    def install(*names: str) -> None:
        points = [EntryPoint(n, "made_up_plugin:Stencil", ops.GROUP) for n in names]
        monkeypatch.setattr(ops, "entry_points", lambda group: points)
        ops._found.cache_clear()

    yield install
    ops._found.cache_clear()


def test_a_plugin_is_found_and_works(plugin):
    plugin("stencil")
    assert ops.op_names() == [*ops.OPS, "stencil"]
    assert ops.op_class("stencil") is Stencil
    assert ops.op_class("stencil")(rows=10, cols=10).flops == 900.0
    check_op("stencil")


@pytest.mark.parametrize("names", [("attention",), ("stencil", "stencil")])
def test_a_plugin_whose_name_is_taken_is_refused(plugin, names):
    plugin(*names)
    with pytest.raises(SpecError, match=f"op '{names[0]}' of made_up_plugin.* already defined"):
        ops.op_names()


def test_a_plugin_under_another_name_than_its_class(plugin):
    plugin("five_point")
    with pytest.raises(AssertionError, match="five_point: its class is named 'stencil'"):
        check_op("five_point")


def test_an_unknown_operation_gets_the_nearest():
    with pytest.raises(SpecError, match=r"unknown op 'atention'; nearest: attention"):
        check_op("atention")


def test_the_documentation_lists_every_operation_once():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = [name for names in re.findall(r"\{op-help\} (.*)", index) for name in names.split()]
    assert sorted(listed) == sorted(ops.OPS)


def test_the_documented_plugin_passes(monkeypatch):
    page = (DOCS / "adding.md").read_text(encoding="utf-8")
    code = re.search(r"## The class\n\n```python\n(.*?)```", page, re.DOTALL)
    module = ModuleType("documented_plugin")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code.group(1).replace("(authors, year", "(Nobody 2020"), vars(module))
    check_op(module.Stencil)
