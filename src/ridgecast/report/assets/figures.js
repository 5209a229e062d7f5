// Draws figures (report/figures.py, plain form) with Plotly. Computes nothing about the data.
"use strict";
const ridgecast = window.ridgecast || (window.ridgecast = {});
(() => {
  const PALETTE = ["#2f7ed8", "#e07a2c", "#1fa37a", "#b4569c", "#c4a11c", "#7a869a", "#8a5a3c", "#5fb7d4", "#d45b6a", "#93a83a"];
  const ORDERED = ["#2fb3c9", "#3f8fe0", "#6d74e0", "#a35fc4", "#d45689", "#e0673f", "#d99a1c", "#94a02c"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-down", "x", "cross", "star", "hexagon"];

  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { ink: read("--ink"), muted: read("--muted"), rule: read("--rule"), paper: read("--paper") };
  };

  const titled = (axis) => (axis.unit ? `${axis.label} [${axis.unit}]`.trim() : axis.label);

  function axisOf(axis, colours) {
    const out = {
      title: { text: titled(axis), font: { size: 12 }, standoff: 8 }, color: colours.ink, automargin: true,
      gridcolor: colours.rule, linecolor: colours.rule, zerolinecolor: colours.rule, tickfont: { size: 11 },
    };
    if (axis.scale === "log" || axis.scale === "log2") {
      out.type = "log";
      out.exponentformat = "power";
      if (axis.scale === "log2") { // powers of two as plain numbers
        const powers = Array.from({ length: 64 }, (_, i) => 2 ** (i - 20));
        Object.assign(out, { tickvals: powers, ticktext: powers.map((v) => String(Number(v.toPrecision(6)))) });
      }
    }
    if (axis.scale === "category") {
      Object.assign(out, { tickvals: axis.categories.map((_, i) => i), ticktext: axis.categories, showgrid: false, zeroline: false });
    }
    return out;
  }

  function coloursOf(series) {
    const ordered = series.filter((s) => s.group);
    const own = series.filter((s) => !s.group && s.style !== "guide");
    return series.map((s) => {
      if (s.style === "guide") return theme().muted;
      if (!s.group) return PALETTE[own.indexOf(s) % PALETTE.length];
      return ORDERED[Math.round((ordered.indexOf(s) * (ORDERED.length - 1)) / Math.max(ordered.length - 1, 1))];
    });
  }

  function whiskers(s, colour) {
    if (!s.low) return undefined;
    return {
      type: "data", symmetric: false, color: colour, thickness: 1.2, width: 4,
      array: s.high.map((v, i) => (v === null ? null : v - s.y[i])),
      arrayminus: s.low.map((v, i) => (v === null ? null : s.y[i] - v)),
    };
  }

  function bars(s, colour, panel) {
    const flat = panel.horizontal;
    const trace = {
      type: "bar", name: s.name, marker: { color: colour }, orientation: flat ? "h" : "v",
      x: flat ? s.y : s.x, y: flat ? s.x : s.y, hovertext: s.hover || s.labels, showlegend: Boolean(s.name),
    };
    if (s.base) trace.base = s.base;
    if (s.style === "stack") Object.assign(trace, { offset: -0.35, width: 0.7 });
    trace[flat ? "error_x" : "error_y"] = whiskers(s, theme().ink);
    const names = (flat ? panel.y : panel.x).categories;
    const where = names ? s.x.map((i) => names[Math.round(i)]) : s.x;
    trace.customdata = where;
    trace.hovertemplate = `%{customdata}<br>%{${flat ? "x" : "y"}:.4~g}` + (trace.hovertext ? "<br>%{hovertext}" : "") +
      (s.name ? `<extra>${s.name.replace(/</g, "&lt;")}</extra>` : "<extra></extra>");
    return trace;
  }

  const guides = (panel, s) => panel.series.filter((o) => o.style === "guide").indexOf(s);

  function points(s, colour, index, panel) {
    const guide = s.style === "guide";
    const line = s.style === "line" || s.style === "both" || guide;
    const named = s.labels && s.labels.some(Boolean);
    const many = s.x.length > 120;
    return {
      type: "scatter", name: s.name, x: s.x, y: s.y, cliponaxis: false, showlegend: Boolean(s.name),
      mode: [line ? "lines" : "", s.style === "points" || s.style === "both" ? "markers" : "", named ? "text" : ""]
        .filter(Boolean).join("+"),
      text: named ? s.labels : undefined, textposition: "top center", textfont: { size: 11, color: theme().ink },
      hovertext: s.hover || undefined, hoverinfo: guide ? "name" : undefined,
      hovertemplate: guide ? undefined : (s.hover ? "%{hovertext}<br>" : "") + `${panel.x.label || "x"} %{x:.4~g}` +
        `<br>${panel.y.label || "y"} %{y:.4~g}<extra>${(s.name || "").replace(/</g, "&lt;")}</extra>`,
      line: { color: colour, width: guide ? 1.2 : 2, dash: guide ? ["dash", "dot", "dashdot"][guides(panel, s) % 3] : "solid" },
      marker: { color: colour, size: many ? 5 : 8, opacity: many ? 0.6 : 0.95, symbol: SYMBOLS[index % SYMBOLS.length] },
      error_y: guide ? undefined : whiskers(s, colour),
    };
  }

  function heat(panel, colours) {
    const log = panel.scale === "log";
    const values = panel.values;
    const trace = {
      type: "heatmap", x: panel.columns, y: panel.rows, hoverongaps: false, xgap: 1, ygap: 1,
      z: log ? values.map((row) => row.map((v) => (v > 0 ? Math.log10(v) : null))) : values,
      customdata: values, colorscale: panel.scale === "signed" ? "RdBu" : "Viridis",
      hovertemplate: `${panel.y.label} %{y}<br>${panel.x.label} %{x}<br>${panel.label} %{customdata:.4~g} ${panel.unit}<extra></extra>`,
      colorbar: { title: { text: [panel.label, panel.unit && `[${panel.unit}]`].filter(Boolean).join(" "), side: "right" },
        thickness: 12, outlinewidth: 0, tickfont: { size: 11 } },
    };
    if (panel.scale === "signed") Object.assign(trace, { zmin: -1, zmax: 1, reversescale: true });
    if (log) {
      const known = trace.z.flat().filter((v) => v !== null);
      const [low, high] = [Math.min(...known), Math.max(...known)];
      const ticks = [];
      for (let d = Math.floor(low); d <= high; d += 1) {
        for (const f of high - low < 1.5 ? [1, 2, 5] : [1]) {
          const at = d + Math.log10(f);
          if (at >= low - 0.01 && at <= high + 0.01) ticks.push([at, Number((f * 10 ** d).toPrecision(3)).toString()]);
        }
      }
      Object.assign(trace.colorbar, { tickvals: ticks.map((t) => t[0]), ticktext: ticks.map((t) => t[1]) });
    }
    const traces = [trace];
    if (panel.mark) {
      traces.push({ type: "scatter", mode: "markers", x: [panel.columns[panel.mark[1]]], y: [panel.rows[panel.mark[0]]],
        hoverinfo: "skip", showlegend: false,
        marker: { size: 16, symbol: "circle-open", color: "#ffffff", line: { width: 3, color: "#ffffff" } } });
    }
    const x = axisOf({ ...panel.x, scale: "" }, colours);
    const y = axisOf({ ...panel.y, scale: "" }, colours);
    Object.assign(x, { type: "category", showgrid: false });
    Object.assign(y, { type: "category", showgrid: false, autorange: "reversed" });
    return { traces, layout: { xaxis: x, yaxis: y } };
  }

  function chart(panel, colours) {
    const series = panel.series.map((s) => ({ x: [], y: [], ...s })); // what is empty is left out
    const shades = coloursOf(series);
    const traces = series.map((s, i) =>
      s.style === "bars" || s.style === "stack" ? bars(s, shades[i], panel) : points(s, shades[i], series.slice(0, i).filter((o) => o.style === "points").length, panel));
    const layout = { xaxis: axisOf(panel.x, colours), yaxis: axisOf(panel.y, colours) };
    if (panel.horizontal) layout.yaxis.autorange = "reversed";
    const stacked = panel.series.some((s) => s.style === "stack");
    Object.assign(layout, { barmode: stacked ? "overlay" : "group", bargap: 0.25 });
    return { traces, layout };
  }

  function layoutOf(panel, own, colours, width) {
    const rows = panel.rows ? panel.rows.length : panel.horizontal ? (panel.y.categories || []).length : 0;
    const named = own.traces.filter((t) => t.showlegend && t.name).length;
    const below = Math.ceil(named / Math.max(1, Math.floor(width / 190)));
    return {
      ...own.layout, autosize: true, height: Math.max(300, 24 * rows + 110) + (named > 1 ? 20 * below : 0),
      margin: { l: 56, r: 16, t: 14, b: 46 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { color: colours.ink, size: 12, family: getComputedStyle(document.body).fontFamily },
      showlegend: named > 1 || (named === 1 && own.traces.length > 1), hoverlabel: { align: "left", font: { size: 12 } },
      legend: { orientation: "h", y: -0.22, yanchor: "top", x: 0, font: { size: 11 } },
    };
  }

  // Fill a <figure> with the panels of a figure that has data.
  ridgecast.draw = (element, figure) => {
    const place = element.querySelector(".panels");
    if (!place) return;
    const colours = theme();
    place.querySelectorAll(".plot").forEach((p) => window.Plotly.purge(p));
    place.replaceChildren();
    const plots = [];
    for (const panel of figure.panels) {
      const box = document.createElement("div");
      box.className = "panel";
      if (panel.title && figure.panels.length > 1) {
        const title = document.createElement("h4");
        title.textContent = panel.title;
        box.append(title);
      }
      place.append(box);
      if (panel.reason) {
        const told = document.createElement("p");
        told.className = "reason";
        told.textContent = panel.reason;
        box.append(told);
        continue;
      }
      const plot = document.createElement("div");
      plot.className = "plot";
      plot.setAttribute("role", "img");
      plot.setAttribute("aria-label", `${figure.title}: ${panel.title}. ${figure.caption}`);
      box.append(plot);
      plots.push([plot, panel]);
    }
    for (const [plot, panel] of plots) { // once every box has its place, so that widths are final
      const own = panel.rows ? heat(panel, colours) : chart(panel, colours);
      window.Plotly.newPlot(plot, own.traces, layoutOf(panel, own, colours, plot.clientWidth || 480),
        { displayModeBar: false, responsive: true, scrollZoom: false });
    }
  };

  ridgecast.picture = async (element, name) => {
    for (const [i, plot] of [...element.querySelectorAll(".plot")].entries()) {
      const at = { format: "png", scale: 2, width: plot.clientWidth, height: plot.clientHeight };
      await window.Plotly.downloadImage(plot, { ...at, filename: i ? `${name}-${i + 1}` : name });
    }
  };
})();
