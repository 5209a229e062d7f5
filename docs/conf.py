"""Sphinx configuration: MyST Markdown, furo, autodoc of the public interface."""

from __future__ import annotations

from importlib.metadata import version as _version

from docutils import nodes
from docutils.parsers.rst import Directive

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


def setup(app) -> None:
    """Register the directive."""
    app.add_directive("command-help", CommandHelp)
