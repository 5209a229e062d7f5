"""Draw `figures` with matplotlib: SVG for pages (colours follow the page), SVG and PNG as files.

Owns colours, sizes and ticks; computes nothing about the data. matplotlib is imported by the
functions that draw; no display is needed.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError
from .figures import Axis, Figure, Heat, Panel, Series, Values

__all__ = ["inline_svg", "png_bytes", "save_svg"]

_INK, _MUTED, _RULE = "#20242b", "#6b7280", "#d3d7de"
# what a page replaces the three neutral colours by, so that they follow light and dark
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _RULE: "var(--rule)"}
_COLOURS = ("#2f7ed8", "#e07a2c", "#1fa37a", "#b4569c", "#c4a11c", "#7a869a")
# from cool to warm for what has an order, light enough for a dark page and dark enough for white
_ORDERED = ("#2fb3c9", "#3f8fe0", "#6d74e0", "#a35fc4", "#d45689", "#e0673f", "#d99a1c", "#94a02c")
_MARKERS = "osD^vPXh"
_PANEL_WIDTH, _HEIGHT = 4.9, 3.5  # inches


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError(
            "drawing figures needs matplotlib: pip install 'ridgecast[study]'"
        ) from error
    mpl.use("agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def _style(figure: Figure) -> dict[str, Any]:
    return {
        "svg.fonttype": "none", "svg.hashsalt": figure.name, "font.size": 9.0,
        "font.family": "sans-serif", "text.color": _INK, "axes.labelcolor": _INK,
        "axes.edgecolor": _RULE, "axes.titlesize": 9.5, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlepad": 8.0, "xtick.color": _MUTED,
        "ytick.color": _MUTED, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "axes.axisbelow": True, "grid.color": _RULE, "grid.linewidth": 0.6,
        "axes.linewidth": 0.8, "xtick.major.width": 0.8, "ytick.major.width": 0.8,
        "xtick.minor.size": 0.0, "ytick.minor.size": 0.0, "legend.fontsize": 8.0,
        "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
        "savefig.facecolor": "none", "legend.title_fontsize": 8.0,
    }  # fmt: skip


def _drawn(figure: Figure) -> Any:
    """Matplotlib figure of the panels that have data."""
    plt = _pyplot()
    panels = [panel for panel in figure.panels if not panel.reason]
    if not panels:
        panels = [figure.panels[0]]
    tall = max((_rows_of(panel) for panel in panels), default=0)
    height = max(_HEIGHT, 0.26 * tall + 0.9)
    width = _PANEL_WIDTH * len(panels) if len(panels) > 1 else _PANEL_WIDTH * 1.35
    drawing, axes = plt.subplots(
        1, len(panels), figsize=(width, height), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        _panel(axis, panel)
    return drawing


def _rows_of(panel: Panel) -> int:
    if panel.heat is not None:
        return len(panel.heat.rows)
    return len(panel.y.categories) if panel.horizontal else 0


def _panel(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title)
    if panel.reason:
        axes.axis("off")
        axes.text(0.5, 0.5, panel.reason, ha="center", va="center", wrap=True, color=_MUTED)
        return
    if panel.heat is not None:
        _heat(axes, panel.heat)
        if panel.x.label:
            axes.set_xlabel(panel.x.text)
            axes.set_ylabel(panel.y.text)
        return
    colours = _colours(panel.series)
    bars = [s for s in panel.series if s.style == "bars"]
    for i, (series, colour) in enumerate(zip(panel.series, colours, strict=True)):
        if series.style == "stack":
            _stack(axes, series, colour, panel.horizontal)
        elif series.style == "bars":
            _bars(axes, series, colour, bars.index(series), len(bars), panel.horizontal)
        else:
            _points(axes, series, colour, _MARKERS[i % len(_MARKERS)])
    _axis(axes, panel.x, "x")
    _axis(axes, panel.y, "y")
    if panel.horizontal:
        axes.invert_yaxis()
        axes.grid(False, axis="y")
    elif bars:
        axes.grid(False, axis="x")
    named = [s for s in panel.series if s.name and s.style != "guide"]
    if len(named) > 1 or any(s.style == "guide" and s.name for s in panel.series):
        room = {"loc": "best"} if len(named) <= 4 else {"loc": "upper left", "ncols": 1,
                "bbox_to_anchor": (1.0, 1.02), "borderaxespad": 0.2}  # fmt: skip
        axes.legend(handlelength=1.3, labelspacing=0.35, **room)


def _colours(series: Sequence[Series]) -> list[str]:
    """One colour a series: ordered ones from the ramp, others from the palette, guides muted."""
    ordered = [s for s in series if s.group]
    plain = [s for s in series if not s.group and s.style != "guide"]
    out: list[str] = []
    for s in series:
        if s.style == "guide":
            out.append(_MUTED)
        elif s.group:
            place = ordered.index(s) * (len(_ORDERED) - 1) / max(len(ordered) - 1, 1)
            out.append(_ORDERED[round(place)])
        else:
            out.append(_COLOURS[plain.index(s) % len(_COLOURS)])
    return out


def _numbers(values: Values) -> list[float]:
    return [math.nan if v is None else float(v) for v in values]


def _points(axes: Any, s: Series, colour: str, marker: str) -> None:
    x, y = _numbers(s.x), _numbers(s.y)
    if s.style == "guide":
        axes.plot(x, y, color=colour, linewidth=1.0, linestyle=(0, (4, 3)), label=s.name or None)
        return
    many = len(x) > 120
    style: dict[str, Any] = {"color": colour, "label": s.name or None}
    if s.style in ("points", "both"):
        style |= {"marker": marker, "markersize": 3.0 if many else 4.5,
                  "markeredgewidth": 0.0, "alpha": 0.55 if many else 0.9}  # fmt: skip
    axes.plot(x, y, linestyle="-" if s.style != "points" else "", linewidth=1.5, **style)
    if len(s.low):
        low = [b - a for a, b in zip(_numbers(s.low), y, strict=True)]
        high = [b - a for a, b in zip(y, _numbers(s.high), strict=True)]
        axes.errorbar(x, y, yerr=[low, high], fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.5)
    for text, a, b in zip(s.labels, x, y, strict=False):
        if text and math.isfinite(b):
            axes.annotate(text, (a, b), textcoords="offset points", xytext=(5, 4), fontsize=7.5)


def _bars(axes: Any, s: Series, colour: str, index: int, count: int, horizontal: bool) -> None:
    width = 0.8 / count
    at = [float(v) - 0.4 + width * (index + 0.5) for v in s.x]
    y = _numbers(s.y)
    draw = axes.barh if horizontal else axes.bar
    draw(at, y, width * 0.92, color=colour, label=s.name or None)
    for a, b, end in zip(at, y, _numbers(s.high) if len(s.high) else y, strict=True):
        if not horizontal and len(s.high) and math.isfinite(end):
            axes.plot([a, a], [b, end], color=colour, linewidth=1.2)
            axes.plot([a], [end], marker="_", color=colour, markersize=6.0)


def _stack(axes: Any, s: Series, colour: str, horizontal: bool) -> None:
    base = _numbers(s.base) if len(s.base) else [0.0] * len(s.x)
    if horizontal:
        axes.barh(s.x, _numbers(s.y), 0.7, left=base, color=colour, label=s.name or None)
    else:
        axes.bar(s.x, _numbers(s.y), 0.7, bottom=base, color=colour, label=s.name or None)


def _heat(axes: Any, heat: Heat) -> None:
    values = [[math.nan if v is None else float(v) for v in row] for row in heat.values]
    if heat.scale == "signed":
        axes.imshow(values, cmap="RdBu_r", vmin=-1.0, vmax=1.0, aspect="auto")
    else:
        from matplotlib.colors import LogNorm

        norm = LogNorm() if heat.scale == "log" else None
        shown = axes.imshow(values, cmap="viridis", norm=norm, aspect="auto")
        unit = f" [{heat.unit}]" if heat.unit else ""
        axes.figure.colorbar(shown, ax=axes, label=f"{heat.label}{unit}")
    if heat.mark is not None:
        axes.plot([heat.mark[1]], [heat.mark[0]], "o", mfc="none", mec="#ffffff", markersize=9)
    axes.set_xticks(range(len(heat.columns)), heat.columns, rotation=45, ha="right")
    axes.set_yticks(range(len(heat.rows)), heat.rows)
    axes.grid(False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    if heat.scale != "signed":
        return
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if math.isfinite(value):
                # fixed colours: the cell behind does not follow the page
                ink = "#ffffff" if abs(value) > 0.6 else "#101214"
                text = f"{value:.2f}".replace("-", "\u2212")
                axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=ink)


def _axis(axes: Any, axis: Axis, name: str) -> None:
    getattr(axes, f"set_{name}label")(axis.text)
    if axis.scale == "category":
        set_ticks = getattr(axes, f"set_{name}ticks")
        set_ticks(range(len(axis.categories)), axis.categories)
        return
    if axis.scale in ("log", "log2"):
        base = 2 if axis.scale == "log2" else 10
        getattr(axes, f"set_{name}scale")("log", base=base)
        _log_ticks(axes, name, base)


def _log_ticks(axes: Any, name: str, base: int) -> None:
    """Plain numbers for powers of two, decades as 10^n; 1-2-5 where less than two decades show."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    which = getattr(axes, f"{name}axis")
    which.set_minor_locator(NullLocator())
    low, high = getattr(axes, f"get_{name}lim")()
    narrow = base == 10 and 0 < low < high < low * 300
    steps = (1.0, 2.0, 5.0) if narrow else (1.0,)
    which.set_major_locator(LogLocator(base=base, subs=steps, numticks=9 if not narrow else 12))
    if base == 2 or narrow:
        which.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def inline_svg(figure: Figure) -> str:
    """SVG to stand inside a page: neutral colours are the page's variables, ids its own."""
    text = _svg(figure)
    body = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        body = re.sub(re.escape(colour), variable, body, flags=re.IGNORECASE)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body)  # a page knows both namespaces itself
    body = body.replace("xlink:href", "href")
    for found in set(re.findall(r'id="([\w.:-]+)"', body)):
        unique = f"{figure.name}-{found}"
        body = body.replace(f'id="{found}"', f'id="{unique}"')
        body = body.replace(f'"#{found}"', f'"#{unique}"').replace(
            f"url(#{found})", f"url(#{unique})"
        )
    return re.sub(r'width="([\d.]+)pt" height="([\d.]+)pt"', _size, body, count=1)


def _size(match: re.Match[str]) -> str:
    """Natural size as the most that a figure may take, so that it shrinks with the page."""
    return f'style="width:100%;max-width:{float(match.group(1)) * 1.25:.0f}px;height:auto"'


def _svg(figure: Figure, background: str = "none") -> str:
    plt = _pyplot()
    buffer = io.StringIO()
    with plt.rc_context(_style(figure)):
        drawing = _drawn(figure)
        drawing.savefig(buffer, format="svg", metadata={"Date": None}, facecolor=background)
        plt.close(drawing)
    return buffer.getvalue()


def save_svg(figure: Figure, path: Path) -> None:
    """Write the figure as a file of its own, on white."""
    path.write_text(_svg(figure, "white"), encoding="utf-8")


def png_bytes(figure: Figure, *, dpi: int = 120) -> bytes:
    """Bytes of a PNG, on white."""
    plt = _pyplot()
    buffer = io.BytesIO()
    with plt.rc_context(_style(figure)):
        drawing = _drawn(figure)
        drawing.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        plt.close(drawing)
    return buffer.getvalue()
