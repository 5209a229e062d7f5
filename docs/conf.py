"""Sphinx configuration: MyST Markdown, furo, autodoc of the public interface."""

from __future__ import annotations

from importlib.metadata import version as _version
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from docutils.statemachine import StringList

project = "ridgecast"
author = "the ridgecast authors"
copyright = "the ridgecast authors, Apache-2.0"
release = version = _version("ridgecast")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"ridgecast {release}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True


class CommandHelp(Directive):
    """Insert what `ridgecast COMMAND --help` prints."""

    required_arguments = 0
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Run the command in this process and keep its output."""
        from typer.testing import CliRunner

        from ridgecast.cli.app import app

        wanted = [*self.arguments, "--help"]
        done = CliRunner().invoke(app, wanted, prog_name="ridgecast", env={"COLUMNS": "90"})
        if done.exit_code:
            raise self.error(f"ridgecast {' '.join(wanted)} exits with {done.exit_code}")
        return [nodes.literal_block(done.stdout, done.stdout, language="text")]


class OpHelp(Directive):
    """Tables of operators by name: what they are with an example, or, with :fields:, fields."""

    required_arguments = 1
    optional_arguments = 40
    option_spec: ClassVar = {"fields": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Read the classes, so that the page cannot disagree with them."""
        from ridgecast.errors import RidgecastError
        from ridgecast.ops import op_class

        try:
            classes = [(name, op_class(name)) for name in self.arguments]
        except (RidgecastError, ImportError) as error:
            raise self.error(str(error)) from error
        if "fields" in self.options:
            return [node for _, cls in classes for node in self._fields(cls)]
        rows = [("operator", "what it is", "example: `ridgecast predict ...`")]
        for name, cls in classes:
            what = getattr(cls, "what", "") or (cls.__doc__ or "").splitlines()[0]
            rows.append(
                (f"`{name}`", what, f"`{name} {getattr(cls, 'example', '4096x4096x4096')}`")
            )
        return [self._table(rows, (20, 40, 40))]

    def _fields(self, cls) -> list[nodes.Node]:
        from dataclasses import MISSING, fields

        defaults = {f.name: f.default for f in fields(cls)}
        rows = [("field", "default", "allowed", "meaning")]
        for name, info in cls.infos().items():
            default = f"as `{info.like}`" if info.like else "needed"
            if not info.like and defaults[name] is not MISSING:
                default = f"`{str(defaults[name]).lower()}`"
            need = "a format" if info.kind == "format" else info.need
            rows.append((f"`{name}`", default, need, info.what))
        title = nodes.paragraph()
        title += nodes.strong(text=f"{cls.name}: {cls.what}")
        return [title, self._table(rows, (15, 15, 30, 40))]

    def _table(self, rows, widths) -> nodes.table:
        group = nodes.tgroup(cols=len(widths))
        group += [nodes.colspec(colwidth=width) for width in widths]
        head, body = nodes.thead(), nodes.tbody()
        for i, cells in enumerate(rows):
            row = nodes.row()
            for cell in cells:
                entry = nodes.entry()
                self.state.nested_parse(StringList([cell]), 0, entry)
                row += entry
            (body if i else head).append(row)
        group += [head, body]
        table = nodes.table(classes=["op-help"])
        table += group
        return table


def setup(app) -> None:
    """Register the directives."""
    app.add_directive("command-help", CommandHelp)
    app.add_directive("op-help", OpHelp)
