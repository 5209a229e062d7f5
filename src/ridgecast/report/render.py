"""Draw `figures` with matplotlib: SVG and PNG as files; pages draw them in the browser.

Owns colours, sizes and ticks; computes nothing about the data. Files may hold several figures, one
under another. matplotlib is imported by the functions that draw; no display is needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from ..errors import MissingExtraError
from .figures import Axis, Figure, Heat, Panel, Series, Values

__all__ = ["png_bytes", "save_svg", "svg_text"]

_INK, _MUTED, _RULE = "#20242b", "#6b7280", "#d3d7de"
_COLOURS = ("#2f7ed8", "#e07a2c", "#1fa37a", "#b4569c", "#c4a11c", "#7a869a", "#8a5a3c", "#5fb7d4",
            "#d45b6a", "#93a83a")  # fmt: skip
_DASHES = ((4, 3), (1, 2), (7, 2, 1, 2))
# from cool to warm for what has an order, light enough for a dark page and dark enough for white
_ORDERED = ("#2fb3c9", "#3f8fe0", "#6d74e0", "#a35fc4", "#d45689", "#e0673f", "#d99a1c", "#94a02c")
_MARKERS = "osD^vPXh"
_PANEL_WIDTH, _HEIGHT = 4.9, 3.5  # inches
_LETTERS = 13.0  # of the usual size an inch
_LABEL, _LINE = 44, 30  # most letters of a category, and of one of its lines
_WRAPPED = 6  # categories, up to which long ones take two lines
_BESIDE = 3  # panels in a row of a figure of its own; more of them go by twos
_MOST_TICKS, _MOST_CELLS = 24, 130  # of a heat map: names along a side, cells that hold numbers


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError(
            "drawing figures needs matplotlib: pip install 'ridgecast[plot]'"
        ) from error
    mpl.use("agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def _style(name: str) -> dict[str, Any]:
    return {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.0,
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


def _drawn(figures: Sequence[Figure], *, told: bool = False) -> Any:
    """Matplotlib figure with a row for each figure that has data; `told` adds titles, captions."""
    plt = _pyplot()
    figures = [f for f in figures if not f.reason] or list(figures[:1])
    rows = [[p for p in f.panels if not p.reason] or [f.panels[0]] for f in figures]
    grids = [_grid(panels) if told else [panels] for panels in rows]
    sizes = [_size_of_all(grid) for grid in grids]
    width = max(w for w, _ in sizes)
    captions = [fill(f.caption, int(width * _LETTERS * 1.15)) if told else "" for f in figures]
    heights = [h + (0.45 + 0.16 * (c.count("\n") + 1) if told else 0.0)
               for (_, h), c in zip(sizes, captions, strict=True)]  # fmt: skip
    drawing = plt.figure(figsize=(width, sum(heights)), layout="constrained")
    parts = drawing.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, figure, grid, caption in zip(parts, figures, grids, captions, strict=True):
        shares = [max(_label_room(p) for p in column) + _PANEL_WIDTH for column in _columns(grid)]
        spare = width - max(sum(shares), _PANEL_WIDTH * 1.6)
        if len(shares) == 1 and spare > 1.0:  # not as wide as two panels of another row
            shares.append(spare)
        tall = [_size_of(line)[1] for line in grid]
        axes = part.subplots(len(grid), len(shares), squeeze=False, width_ratios=shares,
                             height_ratios=tall)  # fmt: skip
        for line, row in zip(axes, grid, strict=True):
            for i, axis in enumerate(line):
                if i < len(row):
                    _panel(axis, row[i], figure.title if told else "")
                else:
                    axis.set_axis_off()
        if told:
            part.suptitle(figure.title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
            part.supxlabel(caption, x=0.01, ha="left", fontsize=8.0, color=_MUTED)
    return drawing


def _grid(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Panels in rows."""
    step = len(panels) if len(panels) <= _BESIDE else 2
    return [list(panels[i : i + step]) for i in range(0, len(panels), step)]


def _columns(grid: Sequence[Sequence[Panel]]) -> list[list[Panel]]:
    return [[row[i] for row in grid if i < len(row)] for i in range(len(grid[0]))]


def _size_of_all(grid: Sequence[Sequence[Panel]]) -> tuple[float, float]:
    """Inches of the rows of one figure."""
    sizes = [_size_of(row) for row in grid]
    return max(w for w, _ in sizes), sum(h for _, h in sizes)


def _size_of(panels: Sequence[Panel]) -> tuple[float, float]:
    """Inches of a row of panels: wider for long categories, taller for many."""
    tall = max(_rows_of(panel) for panel in panels)
    height = max(_HEIGHT if not _short(panels) else 0.0, 0.28 * tall + 1.0)
    room = sum(_label_room(panel) for panel in panels)
    return _PANEL_WIDTH * (len(panels) if len(panels) > 1 else 1.35) + room, height


def _short(panels: Sequence[Panel]) -> bool:
    """Whether all panels are horizontal bars, which need no more height than their rows."""
    return all(panel.horizontal and panel.heat is None for panel in panels)


def _rows_of(panel: Panel) -> int:
    """Rows of text that a panel holds."""
    if panel.heat is not None:
        return min(len(panel.heat.rows), 2 * _MOST_TICKS)
    if not panel.horizontal:
        return 0
    lines = sum(name.count("\n") + 1 for name in _categories(panel.y.categories))
    # bars side by side share a row; a row of them is no thinner than a line
    beside = sum(s.style == "bars" for s in panel.series)
    return max(lines, round(len(panel.y.categories) * max(1.0, 0.5 * beside)))


def _label_room(panel: Panel) -> float:
    """Inches that names beside an axis take beyond the usual."""
    names = panel.heat.rows if panel.heat is not None else ()
    names = panel.y.categories if panel.horizontal else names
    longest = max((len(one) for n in _categories(names) for one in n.split("\n")), default=0)
    room = max(longest - 8, 0) / _LETTERS
    shown = _named(panel)
    if _at_side(shown):
        room += max(len(s.name) for s in shown) / _LETTERS + 0.3
    return room


def _categories(names: Sequence[str]) -> list[str]:
    """Names of categories: cut where long, on two lines where they are few."""
    cut = [n if len(n) <= _LABEL else f"{n[: _LABEL - 1]}…" for n in names]
    return [fill(n, _LINE) for n in cut] if len(names) <= _WRAPPED else cut


def _panel(axes: Any, panel: Panel, above: str = "") -> None:
    """Draw one panel; `above` stands over it, so that it need not say the same."""
    title = "" if panel.title == above else panel.title
    axes.set_title(title)
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
    guides = [s for s in panel.series if s.style == "guide"]
    for i, (series, colour) in enumerate(zip(panel.series, colours, strict=True)):
        if series.style == "guide":
            dashes = _DASHES[guides.index(series) % len(_DASHES)]
            axes.plot(_numbers(series.x), _numbers(series.y), color=colour, linewidth=1.0,
                      linestyle=(0, dashes), label=series.name or None)  # fmt: skip
        elif series.style == "stack":
            _stack(axes, series, colour, panel.horizontal)
        elif series.style == "bars":
            _bars(axes, series, colour, (bars.index(series), len(bars)), panel.horizontal)
        else:
            dense = len(series.x) > 8 and sum(len(s.x) for s in panel.series) > 150
            _points(axes, series, colour, _MARKERS[i % len(_MARKERS)], dense)
    _axis(axes, panel.x, "x")
    _axis(axes, panel.y, "y")
    _whole(axes, panel)
    if panel.horizontal:
        axes.invert_yaxis()
        axes.grid(False, axis="y")
    elif bars or any(s.style == "stack" for s in panel.series):
        axes.grid(False, axis="x")
    if panel.horizontal and bars:
        axes.margins(x=0.14)
    _labels(axes, [s for s in panel.series if s.style in ("points", "line", "both")])
    _legend(axes, panel, title)


def _whole(axes: Any, panel: Panel) -> None:
    """No ticks between whole numbers where bars count something."""
    drawn = [s for s in panel.series if s.style in ("bars", "stack")]
    if drawn and all(isinstance(v, int | np.integer) for s in drawn for v in s.y):
        which = axes.xaxis if panel.horizontal else axes.yaxis
        which.get_major_locator().set_params(integer=True)


def _labels(axes: Any, series: Sequence[Series]) -> None:
    """Texts beside their points, each on the first side where it covers no other."""
    taken: list[_Box] = []
    points = [(text, x, y) for s in series
              for text, x, y in zip(s.labels, _numbers(s.x), _numbers(s.y), strict=False)
              if text and math.isfinite(y)]  # fmt: skip
    axes.autoscale_view()
    least, most = (axes.transAxes.transform(end) for end in ((0.0, 0.0), (1.0, 1.0)))
    for text, x, y in points:
        at, wide = axes.transData.transform((x, y)), 5.6 * len(text)
        boxes = {(side, above): _box(at, side, above, wide)
                 for above in (-13, 5, -25, 17) for side in (5, -5)}  # fmt: skip
        free = [place for place, box in boxes.items() if _inside(box, (*least, *most))
                and not any(_over(box, other) for other in taken)]  # fmt: skip
        side, above = (free or list(boxes))[0]
        taken.append(boxes[side, above])
        axes.annotate(text, (x, y), textcoords="offset points",
                      xytext=(side * 0.8, above * 0.75), fontsize=7.5,
                      ha="left" if side > 0 else "right")  # fmt: skip


_Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels


def _box(at: Sequence[float], side: float, above: float, wide: float) -> _Box:
    """Where a text of some width would stand beside a point."""
    left, bottom = at[0] + side - (wide if side < 0 else 0.0), at[1] + above
    return left, bottom, left + wide, bottom + 12.0


def _inside(box: Sequence[float], of: Sequence[float]) -> bool:
    return of[0] <= box[0] and of[1] <= box[1] and box[2] <= of[2] and box[3] <= of[3]


def _over(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _named(panel: Panel) -> list[Series]:
    """Series that a legend names: none where there is only one, unless it is a guide."""
    named = [s for s in panel.series if s.name]
    several = len([s for s in named if s.style != "guide"]) > 1
    return named if several or any(s.style == "guide" for s in named) else []


def _at_side(named: Sequence[Series]) -> bool:
    return len(named) > 6


def _legend(axes: Any, panel: Panel, title: str) -> None:
    """Name the series above the axes, or beside them where there are many; never over data."""
    named = _named(panel)
    if not named:
        return
    style: dict[str, Any] = {"handlelength": 1.2, "borderaxespad": 0.0, "labelspacing": 0.35}
    if _at_side(named):
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), ncols=1, **style)
        return
    letters = sum(len(s.name) + 5 for s in named)
    rows = min(math.ceil(letters / (_PANEL_WIDTH * _LETTERS)), len(named))
    columns = math.ceil(len(named) / rows)
    rows = math.ceil(len(named) / columns)
    from matplotlib.transforms import ScaledTranslation

    above = axes.transAxes + ScaledTranslation(0.0, 5.0 / 72.0, axes.figure.dpi_scale_trans)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), bbox_transform=above, ncols=columns,
                columnspacing=1.3, **style)  # fmt: skip
    axes.set_title(title, pad=10.0 + 13.0 * rows)


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


def _points(axes: Any, s: Series, colour: str, marker: str, many: bool) -> None:
    x, y = _numbers(s.x), _numbers(s.y)
    style: dict[str, Any] = {"color": colour, "label": s.name or None}
    if s.style in ("points", "both"):
        style |= {"marker": marker, "markersize": 3.0 if many else 4.5,
                  "markeredgewidth": 0.0, "alpha": 0.55 if many else 0.9}  # fmt: skip
    axes.plot(x, y, linestyle="-" if s.style != "points" else "", linewidth=1.5, **style)
    if len(s.low):  # an interval of other devices' errors need not hold the prediction
        axes.vlines(x, _numbers(s.low), _numbers(s.high), color=colour, linewidth=0.7, alpha=0.5)


def _bars(axes: Any, s: Series, colour: str, place: tuple[int, int], horizontal: bool) -> None:
    """Bars beside those of other series, each with its whisker from low (or its end) to high."""
    index, count = place
    width = 0.8 / count
    at = [float(v) - 0.4 + width * (index + 0.5) for v in s.x]
    y = _numbers(s.y)
    draw = axes.barh if horizontal else axes.bar
    draw(at, y, width * 0.92, color=colour, label=s.name or None)
    high = _numbers(s.high) if len(s.high) else y
    low = _numbers(s.low) if len(s.low) else y
    ink = _INK if len(s.low) else colour
    for a, b, c in zip(at, low, high, strict=True):
        if len(s.high) and math.isfinite(c):
            line = ([b, c], [a, a]) if horizontal else ([a, a], [b, c])
            axes.plot(*line, color=ink, linewidth=1.1, solid_capstyle="butt")
            end = ([c], [a]) if horizontal else ([a], [c])
            axes.plot(*end, marker="|" if horizontal else "_", color=ink, markersize=6.0)
    labels = s.labels
    if horizontal and count == 1 and not len(labels) and not len(s.high):
        labels = [f"{v:.3g}" for v in y]  # bars alone say what they are
    across = axes.get_yaxis_transform() if horizontal else axes.get_xaxis_transform()
    for text, a, b, end in zip(labels, at, y, high, strict=False):
        if text:
            known = math.isfinite(b)  # what is not known says so where its bar would begin
            far = (end if math.isfinite(end) else b) if known else 0.0
            axes.annotate(text, (far, a) if horizontal else (a, far), textcoords="offset points",
                          xycoords="data" if known else across, color=_INK if known else _MUTED,
                          xytext=(4, 0) if horizontal else (0, 3), fontsize=7.5,
                          va="center" if horizontal else "bottom",
                          ha="left" if horizontal else "center")  # fmt: skip


def _stack(axes: Any, s: Series, colour: str, horizontal: bool) -> None:
    base = _numbers(s.base) if len(s.base) else [0.0] * len(s.x)
    at, y = _numbers(s.x), _numbers(s.y)
    if horizontal:
        axes.barh(at, y, 0.7, left=base, color=colour, label=s.name or None)
    else:
        axes.bar(at, y, 0.7, bottom=base, color=colour, label=s.name or None)


def _heat(axes: Any, heat: Heat) -> None:
    values = [[math.nan if v is None else float(v) for v in row] for row in heat.values]
    shown = _coloured(axes, heat, values)
    if heat.mark is not None:
        from matplotlib.patches import Rectangle

        corner = (heat.mark[1] - 0.5, heat.mark[0] - 0.5)
        for ink, wide in (("#101214", 3.2), ("#ffffff", 1.4)):
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ink, linewidth=wide))
    turned = max((len(c) for c in heat.columns), default=0) * len(heat.columns) > 40
    for which, names in (("x", heat.columns), ("y", heat.rows)):
        step = math.ceil(len(names) / _MOST_TICKS)
        at = range(0, len(names), step)
        labels = _categories([str(names[i]) for i in at])
        style = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        getattr(axes, f"set_{which}ticks")(at, labels, **style if which == "x" and turned else {})
    axes.grid(False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    if sum(len(row) for row in values) > _MOST_CELLS:
        return
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if math.isfinite(value):
                # fixed colours: the cell behind does not follow the page
                red, green, blue, _ = shown.cmap(shown.norm(value))
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.52
                text = f"{value:.2f}" if heat.scale == "signed" else f"{value:.3g}"
                axes.text(j, i, text.replace("-", "\u2212"), ha="center", va="center",
                          fontsize=7.5, color="#ffffff" if dark else "#101214")  # fmt: skip


def _coloured(axes: Any, heat: Heat, values: Sequence[Sequence[float]]) -> Any:
    """Cells, with a bar that says what colours mean unless they are correlations."""
    if heat.scale == "signed":
        return axes.imshow(values, cmap="RdBu_r", vmin=-1.0, vmax=1.0, aspect="auto")
    from matplotlib.colors import LogNorm

    known = [v for row in values for v in row if math.isfinite(v) and v > 0]
    log = heat.scale == "log" and known and max(known) > min(known)
    shown = axes.imshow(values, cmap="viridis", norm=LogNorm() if log else None, aspect="auto")
    unit = f" [{heat.unit}]" if heat.unit else ""
    bar = axes.figure.colorbar(shown, ax=axes, label=f"{heat.label}{unit}")
    bar.outline.set_visible(False)
    if log and max(known) < min(known) * 300:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    return shown


def _axis(axes: Any, axis: Axis, name: str) -> None:
    getattr(axes, f"set_{name}label")(axis.text)
    if axis.scale == "category":
        labels = _categories(axis.categories)
        set_ticks = getattr(axes, f"set_{name}ticks")
        # beside one another only as far as they fit
        many = name == "x" and sum(min(len(c), _LABEL) + 2 for c in axis.categories) > 58
        style = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if many else {}
        set_ticks(range(len(labels)), labels, **style)
        getattr(axes, f"set_{name}lim")(-0.6, len(labels) - 0.4)
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


def _svg(figures: Sequence[Figure], background: str = "none", *, told: bool = False) -> str:
    plt = _pyplot()
    buffer = io.StringIO()
    with plt.rc_context(_style(figures[0].name)):
        drawing = _drawn(figures, told=told)
        drawing.savefig(buffer, format="svg", metadata={"Date": None}, facecolor=background)
        plt.close(drawing)
    return buffer.getvalue()


def _several(figures: Figure | Sequence[Figure]) -> list[Figure]:
    return [figures] if isinstance(figures, Figure) else list(figures)


def svg_text(figures: Figure | Sequence[Figure]) -> str:
    """SVG document on white; a sequence of figures with their titles, one a row."""
    return _svg(_several(figures), "white", told=not isinstance(figures, Figure))


def save_svg(figures: Figure | Sequence[Figure], path: Path) -> None:
    """Write a figure as a file of its own, on white; several with their titles, one a row."""
    path.write_text(svg_text(figures), encoding="utf-8")


def png_bytes(figures: Figure | Sequence[Figure], *, dpi: int = 120) -> bytes:
    """Bytes of a PNG, on white; a sequence of figures with their titles, one a row."""
    plt = _pyplot()
    rows, buffer = _several(figures), io.BytesIO()
    with plt.rc_context(_style(rows[0].name)):
        drawing = _drawn(rows, told=not isinstance(figures, Figure))
        drawing.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        plt.close(drawing)
    return buffer.getvalue()
