"""Views as pages: one static HTML file that needs no network, or a fragment for a notebook.

Owns the templates and the assets, which the web page serves too: what a view looks like is decided
once. Jinja2 escapes everything that is put in, and is imported by the functions that draw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from .view import View

__all__ = ["ASSETS", "asset", "embedded", "fragment", "static_page", "template"]

# every file that a page may load, and its type
ASSETS: Mapping[str, str] = {
    "page.css": "text/css; charset=utf-8",
    "figures.js": "text/javascript; charset=utf-8",
    "blocks.js": "text/javascript; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "plotly-cartesian.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_PLOTLY = "plotly-cartesian.min.js"


@cache
def asset(name: str) -> str:
    """Text of one of ASSETS. Raises KeyError for any other name."""
    if name not in ASSETS:
        raise KeyError(name)
    return files("ridgecast.report").joinpath("assets", name).read_text("utf-8")


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("ridgecast.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def template(name: str) -> Any:
    """Return a template of this room."""
    return _environment().get_template(name)


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element: no tag can end it."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def static_page(views: Sequence[Any], *, title: str = "") -> str:
    """Return one HTML document that holds views, their data and the scripts that draw them.

    A view may be given in its plain form, or as it was stored. Nothing in it is loaded from
    elsewhere.
    """
    shown = [dict(v) if isinstance(v, Mapping) else v.to_dict() for v in views]
    figures = [[b for b in v["blocks"] if b["kind"] == "figure"] for v in shown]
    tables = [{"figures": f} for f in figures]
    footers = dict.fromkeys(v["footer"] for v in shown if v.get("footer"))
    return template("static.html").render(
        title=title or (shown[0]["title"] if shown else "ridgecast"),
        views=[_without_links(v) for v in shown],
        data=[embedded(t) for t in tables],
        css=asset("page.css"),
        plotly=asset(_PLOTLY) if any(figures) else "",
        scripts=asset("figures.js") + "\n" + asset("blocks.js"),
        drawn=any(figures),
        footer=" · ".join(footers) or _made_by(),
    )


def _without_links(view: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same view whose tables lead nowhere: a file has no pages beside it."""
    blocks = [b | {"links": []} if b["kind"] == "table" else b for b in view["blocks"]]
    return {**view, "blocks": blocks}


def _made_by() -> str:
    from datetime import UTC, datetime

    from .. import __version__

    return f"ridgecast {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def fragment(view: View) -> str:
    """Facts, tables and words of a view as HTML without a script, for a notebook."""
    plain = _without_links(view.to_dict())
    plain["blocks"] = [b for b in plain["blocks"] if b["kind"] != "figure"]
    return template("fragment.html").render(view=plain)
