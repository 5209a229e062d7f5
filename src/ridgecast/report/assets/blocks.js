// Draws the blocks of a view from its plain form, as templates/blocks.html does on the server, and
// brings blocks to life: sorting, definitions on hover and focus, figures.
"use strict";
(() => {
  const ridgecast = window.ridgecast;

  // element with attributes and children; text is never read as HTML
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
    return element;
  }
  ridgecast.make = make;

  const term = (text, definition) =>
    definition ? make("span", { class: "term", tabindex: "0", "data-definition": definition }, text) : text;

  const drawn = {
    facts: (b) => make("dl", { class: "facts" }, ...b.items.map((f) => make("div", {},
      make("dt", {}, term(f.label, f.definition)), make("dd", { class: f.text.length > 10 ? "long" : null }, f.text),
      f.note ? make("dd", { class: "note" }, f.note) : null))),
    words: (b) => make("div", { class: `words ${b.tone}` }, b.title ? make("h3", {}, b.title) : null,
      ...(b.listed ? [make("ul", {}, ...b.texts.map((t) => make("li", {}, t)))] : b.texts.map((t) => make("p", {}, t)))),
    heading: (b) => make("h2", { class: "part" }, b.text),
    table: (b) => {
      const head = make("tr", {}, ...b.columns.map((c) =>
        make("th", { scope: "col", class: c.numeric ? "n" : null }, term(c.heading, c.definition))));
      const body = b.cells.map((cells, i) => make("tr",
        { class: (b.group && i && b.rows[i][b.group] !== b.rows[i - 1][b.group] ? "cut " : "") + (b.strong.includes(i) ? "strong" : "") },
        ...cells.map((text, j) => {
          const link = b.links.length ? b.links[i][j] : null;
          return make("td", { class: b.columns[j].numeric ? "n" : null }, link ? make("a", { href: link }, text) : text);
        })));
      return make("details", { class: "table", "data-table": b.name, open: b.open },
        make("summary", {}, make("h3", {}, b.title), make("span", { class: "count" }, String(b.rows.length))),
        b.caption ? make("p", { class: "caption" }, b.caption) : null,
        make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": b.title },
          make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))));
    },
    figure: (b) => make("figure", { "data-figure": b.name },
      make("figcaption", {}, make("b", {}, b.title), " ", make("span", {}, b.caption)),
      b.reason ? make("p", { class: "reason" }, `Not shown: ${b.reason}.`)
        : make("div", { class: `panels n${b.panels.length}` })),
  };

  ridgecast.blocks = (view) => view.blocks.map((b) => drawn[b.kind](b));

  function sortable(table) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 3) return;
    const found = (table.closest("[data-table]") || {}).ridgecastRows;
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = make("button", { type: "button", "aria-label": `Sort by ${cell.textContent}` });
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const up = cell.getAttribute("aria-sort") !== "ascending";
        [...table.tHead.rows[0].cells].forEach((c) => c.removeAttribute("aria-sort"));
        cell.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = found && found.columns[column].key;
        const value = (row) => (found ? found.rows[Number(row.dataset.at)][key] : row.cells[column].textContent);
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === null || x === undefined) return 1;
          if (y === null || y === undefined) return -1;
          const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
          return up ? order : -order;
        });
        rows.forEach((row) => row.classList.remove("cut"));
        body.append(...rows);
      });
    });
    [...body.rows].forEach((row, i) => { row.dataset.at = i; });
  }

  // Bring a drawn view to life. `blocks` are those of its plain form that stand in `element`.
  ridgecast.enliven = (element, blocks) => {
    const tables = new Map(blocks.filter((b) => b.kind === "table").map((b) => [b.name, b]));
    element.querySelectorAll("[data-table]").forEach((place) => {
      place.ridgecastRows = tables.get(place.dataset.table);
      place.querySelectorAll("table").forEach(sortable);
    });
    const figures = new Map(blocks.filter((b) => b.kind === "figure").map((b) => [b.name, b]));
    element.querySelectorAll("figure[data-figure]").forEach((place) => {
      const figure = figures.get(place.dataset.figure);
      if (!figure || figure.reason) return;
      if (figure.panels.length > 2) place.classList.add("wide");
      const save = make("button", { type: "button", class: "save", title: "Save as PNG", "aria-label": `Save ${figure.title} as PNG` }, "PNG");
      save.addEventListener("click", () => ridgecast.picture(place, figure.name));
      place.prepend(save);
      place.ridgecastFigure = figure;
      ridgecast.draw(place, figure);
    });
  };

  // ------------------------------------------------------------------------- definitions
  let tip = null;
  function hide() {
    if (tip) tip.remove();
    tip = null;
  }
  function show(event) {
    const place = event.target.closest && event.target.closest(".term");
    if (!place) return;
    hide();
    tip = make("div", { class: "tip", role: "tooltip", id: "tip" }, place.dataset.definition);
    document.body.append(tip);
    place.setAttribute("aria-describedby", "tip");
    const box = place.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(above > 4 ? above : box.bottom + 6) + window.scrollY}px`;
  }
  document.addEventListener("mouseover", (e) => (e.target.closest && e.target.closest(".term") ? show(e) : hide()));
  document.addEventListener("focusin", (e) => (e.target.closest(".term") ? show(e) : hide()));
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") hide(); });

  // redraw in the colours of the page when they change
  const again = () => document.querySelectorAll("figure[data-figure]").forEach((place) => {
    if (place.ridgecastFigure) ridgecast.draw(place, place.ridgecastFigure);
  });
  ridgecast.redraw = again;
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

  // a static page brings its data along
  document.querySelectorAll("section.view > script.data").forEach((script) => {
    const data = JSON.parse(script.textContent);
    ridgecast.enliven(script.parentElement, data.figures);
  });
})();
