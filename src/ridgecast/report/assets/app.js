// The live page: gathers the question, asks the JSON interface, draws the answer, keeps the address.
"use strict";
(() => {
  const ridgecast = window.ridgecast;
  const { make } = ridgecast;
  const form = document.getElementById("ask");
  const sections = [...document.querySelectorAll("section.view[data-endpoint]")];
  const shown = new Map(); // section -> its last view
  const running = new Map(); // section -> AbortController
  const plotly = new Promise((done) => {
    const script = document.getElementById("plotly");
    if (window.Plotly) done();
    else script.addEventListener("load", () => done());
  });

  // ------------------------------------------------------------------------------ the question
  function gather() {
    if (form.hidden) return [...new URLSearchParams(window.location.search)]; // a page without a form
    const pairs = [];
    const lists = new Map();
    for (const field of form.elements) {
      if (!field.name || field.disabled) continue;
      const chips = field.closest(".chips");
      if (chips) {
        if (field.checked) lists.set(field.name, [...(lists.get(field.name) || []), field.value]);
        continue;
      }
      const value = field.type === "checkbox" ? String(field.checked) : field.value.trim();
      if (value === "" && field.type !== "select-one") continue;
      if (value !== field.dataset.default) pairs.push([field.name, value]);
    }
    document.querySelectorAll(".sliders").forEach((box) => {
      box.querySelectorAll("input[type=range]").forEach((s) => {
        if (Number(s.value) !== 0) {
          const change = `${s.dataset.field}=${Number(s.value) > 0 ? "+" : ""}${s.value}%`;
          lists.set(box.dataset.name, [...(lists.get(box.dataset.name) || []), change]);
        }
      });
    });
    document.querySelectorAll(".chips[data-default]").forEach((box) => {
      const { name, default: plain } = box.dataset;
      const values = lists.get(name) || [];
      if (values.join(",") === plain) lists.delete(name);
    });
    for (const [name, values] of lists) values.forEach((v) => pairs.push([name, v]));
    return pairs;
  }

  const queryOf = (section, pairs) => {
    const fields = new Set(section.dataset.fields.split(" "));
    return new URLSearchParams(pairs.filter(([name]) => fields.has(name))).toString();
  };

  // -------------------------------------------------------------------------------- the answer
  function tools(section, view, query) {
    const bar = section.querySelector(".tools");
    const at = (extra) => `${section.dataset.endpoint}?${[query, extra].filter(Boolean).join("&")}`;
    bar.hidden = false;
    bar.querySelectorAll("[data-form]").forEach((a) => { a.href = at(`format=${a.dataset.form}`); });
    bar.querySelectorAll("[data-copy]").forEach((b) => { b.hidden = !view[b.dataset.copy]; });
    bar.querySelector("output").textContent = view.command.split("\n")[0];
    section.querySelectorAll("details[data-table]").forEach((place) => {
      const links = make("span", { class: "downloads" });
      for (const form of ["csv", "json", "parquet"]) {
        links.append(make("a", { href: at(`format=${form}&table=${place.dataset.table}`), download: "" }, form.toUpperCase()));
      }
      place.querySelector("summary").append(links);
    });
  }

  async function enliven(section, view, query) {
    shown.set(section, view);
    tools(section, view, query);
    await plotly;
    if (shown.get(section) === view) ridgecast.enliven(section.querySelector(".answer"), view.blocks);
  }

  function fail(section, problems) {
    section.querySelector(".problems").replaceChildren(...problems.map((p) =>
      make("div", { class: "error" }, make("h3", {}, p.message), p.cure && !p.message.endsWith(p.cure) ? make("p", {}, p.cure) : null)));
    document.querySelectorAll("[aria-invalid]").forEach((f) => f.removeAttribute("aria-invalid"));
    problems.forEach((p) => {
      const field = document.getElementById(`f-${p.field}`);
      if (field) field.setAttribute("aria-invalid", "true");
    });
  }

  async function ask(section, pairs) {
    const query = queryOf(section, pairs);
    if (running.has(section)) running.get(section).abort();
    const control = new AbortController();
    running.set(section, control);
    section.setAttribute("aria-busy", "true");
    try {
      const reply = await fetch(`${section.dataset.endpoint}?${query}`, { signal: control.signal });
      const found = await reply.json();
      if (!reply.ok) {
        fail(section, found.errors);
        section.querySelector(".answer").replaceChildren();
        section.querySelector(".tools").hidden = true;
        return;
      }
      fail(section, []);
      const open = new Map([...section.querySelectorAll("details[data-table]")].map((d) => [d.dataset.table, d.open]));
      const head = make("header", { class: "head" }, make("h2", {}, found.title),
        found.lead ? make("p", { class: "lead" }, found.lead) : null);
      const answer = section.querySelector(".answer");
      const focused = answer.contains(document.activeElement) ? document.activeElement.outerHTML : "";
      answer.replaceChildren(head, make("div", { class: "blocks" }, ...ridgecast.blocks(found)));
      section.querySelectorAll("details[data-table]").forEach((d) => { if (open.has(d.dataset.table)) d.open = open.get(d.dataset.table); });
      if (focused) { // who moves through an answer by keyboard stays where they were
        const same = [...answer.querySelectorAll("a, button, summary, [tabindex]")].find((e) => e.outerHTML === focused);
        if (same) same.focus({ preventScroll: true });
      }
      await enliven(section, found, query);
      if (found.pending) window.setTimeout(() => { if (shown.get(section) === found) ask(section, gather()); }, 1500);
    } catch (error) {
      if (error.name !== "AbortError") {
        fail(section, [{ field: "", message: "the server does not answer", cure: "start it again: ridgecast web" }]);
      }
    } finally {
      if (running.get(section) === control) {
        running.delete(section);
        section.removeAttribute("aria-busy");
        section.removeAttribute("data-waiting");
      }
    }
  }

  // number fields that are empty, or hold what is no number, where one is needed
  const unreadable = () => [...form.elements].filter((f) => f.type === "number" && !f.disabled &&
    (f.validity.badInput || (f.value === "" && f.dataset.default !== "")));

  let asked = null;
  function refresh() {
    const wrong = unreadable();
    if (wrong.length && sections.length) {
      fail(sections[0], wrong.map((f) => ({ field: f.name, message: `${f.name}: needs a number`, cure: `as ${f.dataset.default || 1}` })));
      asked = null;
      return;
    }
    const pairs = gather();
    const query = new URLSearchParams(pairs).toString();
    if (query === asked) return;
    const before = asked;
    asked = query;
    window.history.replaceState(null, "", query ? `?${query}` : window.location.pathname);
    const old = new URLSearchParams(before || "");
    sections.forEach((section, i) => {
      const same = before !== null && queryOf(section, [...old]) === queryOf(section, pairs);
      if (!same) ask(section, pairs, i);
    });
  }
  let timer = 0;
  const soon = () => { window.clearTimeout(timer); timer = window.setTimeout(refresh, 120); };

  // ------------------------------------------------------------------------------ the controls
  function chip(name, value) {
    return make("label", { class: "chip" }, make("input", { type: "checkbox", name, value, checked: true }), make("span", {}, value));
  }
  function removable(label) {
    const button = make("button", { type: "button", "aria-label": `Remove ${label.textContent}` }, "×");
    button.addEventListener("click", () => { label.remove(); soon(); });
    label.append(button);
  }
  document.querySelectorAll(".chips").forEach((box) => {
    const adding = box.querySelector(".adding");
    const chosen = box.querySelector(".chosen");
    chosen.querySelectorAll(".chip").forEach(removable);
    const known = new Set([...box.querySelectorAll("option")].map((o) => o.value));
    const add = () => {
      const value = adding.value.trim();
      if (!value) return;
      if ([...chosen.querySelectorAll("input")].some((i) => i.value === value)) {
        adding.value = "";
        return;
      }
      const label = chip(box.dataset.name, value);
      chosen.append(label);
      removable(label);
      adding.value = "";
      soon();
    };
    adding.addEventListener("keydown", (e) => { if (e.key === "Enter") { e.preventDefault(); add(); } });
    adding.addEventListener("change", add);
    adding.addEventListener("input", (e) => { if (e.inputType === "insertReplacementText" || (!e.inputType && known.has(adding.value))) add(); });
  });
  document.querySelectorAll(".sliders").forEach((box) => {
    const tell = (s) => { s.parentElement.querySelector("output").textContent = Number(s.value) ? `${s.value > 0 ? "+" : ""}${s.value} %` : "as is"; };
    box.querySelectorAll("input[type=range]").forEach((s) => s.addEventListener("input", () => { tell(s); soon(); }));
    box.querySelector(".reset").addEventListener("click", () => {
      box.querySelectorAll("input[type=range]").forEach((s) => { s.value = 0; tell(s); });
      box.querySelectorAll(".chip").forEach((c) => c.remove());
      soon();
    });
  });
  const kernel = document.getElementById("f-kernel");
  function parameters() {
    document.querySelectorAll("[data-kernels]").forEach((place) => {
      const fits = place.dataset.kernels.split(" ").includes(kernel.value);
      place.hidden = !fits;
      const held = place.tagName === "OPTION" ? [place] : place.querySelectorAll("input");
      held.forEach((i) => { i.disabled = !fits; });
    });
  }
  if (kernel) { kernel.addEventListener("change", parameters); parameters(); }
  // the two knobs of a map: only those that the kernel has, and never one twice
  const knobs = [...document.querySelectorAll("select[data-knob]")];
  const before = new Map(knobs.map((knob) => [knob, knob.value]));
  function settle(changed) {
    if (before.has(changed)) knobs.filter((k) => k !== changed && k.value === changed.value).forEach((k) => { k.value = before.get(changed); });
    for (const knob of knobs) {
      const free = [...knob.options].filter((o) => !o.disabled && !knobs.some((k) => k !== knob && k.value === o.value));
      const lost = [...knob.options].some((o) => o.disabled && o.value === knob.value);
      if (lost) knob.value = (free.find((o) => o.value === knob.dataset.default) || free[0]).value;
      before.set(knob, knob.value);
    }
  }
  if (kernel && knobs.length) [kernel, ...knobs].forEach((field) => field.addEventListener("change", () => settle(field)));
  form.addEventListener("submit", (e) => { e.preventDefault(); refresh(); });
  document.addEventListener("input", (e) => { if (e.target.form === form && !e.target.classList.contains("adding") && e.target.type !== "range") soon(); });
  document.addEventListener("change", (e) => { if (e.target.form === form && !e.target.classList.contains("adding")) soon(); });
  if (window.matchMedia("(max-width: 60rem)").matches) {
    const all = form.querySelector("details.all");
    if (all) all.open = false;
  }

  document.addEventListener("click", async (e) => {
    const button = e.target.closest("[data-copy]");
    if (!button) return;
    const section = button.closest("section");
    const view = shown.get(section);
    const text = button.dataset.copy === "address" ? window.location.origin + view.address : view[button.dataset.copy];
    const told = section.querySelector(".tools .done");
    try {
      await navigator.clipboard.writeText(text);
      told.textContent = "copied";
    } catch {
      window.prompt("Copy this", text);
    }
    window.setTimeout(() => { told.textContent = ""; }, 1500);
  });
  document.addEventListener("keydown", (e) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (e.key === "/" && !typing) {
      e.preventDefault();
      const all = form.querySelector("details.all");
      if (all) all.open = true;
      const first = form.querySelector("input, select");
      if (first) first.focus();
    }
    if (e.key === "Escape" && typing) document.activeElement.blur();
  });
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { window.localStorage.setItem("ridgecast-theme", root.dataset.theme); } catch { /* not kept */ }
    ridgecast.redraw();
  });

  // ------------------------------------------------------------------------ a table of one's own
  const file = document.getElementById("file");
  if (file) {
    const section = document.getElementById("view-table");
    let sent = null;
    const KINDS = { csv: "text/csv", parquet: "application/vnd.apache.parquet", json: "application/json", jsonl: "application/x-ndjson" };
    const post = (form) => fetch(`/api/predict?format=${form}`, { method: "POST", body: sent.body, headers: { "content-type": sent.kind } });
    const predict = async () => {
      section.setAttribute("aria-busy", "true");
      const reply = await post("json");
      const found = await reply.json();
      section.removeAttribute("aria-busy");
      document.getElementById("table-tools").hidden = !reply.ok;
      fail(section, reply.ok ? [] : found.errors);
      section.querySelector(".answer").replaceChildren();
      if (!reply.ok) return;
      const names = [...new Set(found.flatMap((row) => Object.keys(row)))].filter((n) => found.some((r) => r[n] !== null && r[n] !== ""));
      const text = (v) => (v === null || v === undefined || v === "" ? "–" : typeof v === "number" && !Number.isInteger(v) ? v.toPrecision(4) : String(v));
      const block = { kind: "table", name: "predictions", title: "Predictions", caption: found.length > 500 ? "The first 500 rows; downloads hold all." : "",
        open: true, group: "", strong: [], links: [], rows: found.slice(0, 500),
        columns: names.map((n) => ({ key: n, heading: n, definition: "", numeric: found.some((r) => typeof r[n] === "number") })),
        cells: found.slice(0, 500).map((r) => names.map((n) => text(r[n]))) };
      section.querySelector(".answer").replaceChildren(make("div", { class: "blocks" }, ...ridgecast.blocks({ blocks: [block] })));
      ridgecast.enliven(section.querySelector(".answer"), [block]);
    };
    file.addEventListener("change", () => {
      const chosen = file.files[0];
      if (!chosen) return;
      sent = { body: chosen, kind: KINDS[chosen.name.split(".").pop().toLowerCase()] || "text/csv" };
      predict();
    });
    document.getElementById("example").addEventListener("click", () => {
      const rows = ["op,hardware,dtype,m,n,k"];
      for (const device of ["h100_sxm", "h200_sxm", "rtx_4070"]) for (const m of [16, 512, 8192]) rows.push(`gemm,${device},bf16,${m},4096,4096`);
      sent = { body: rows.join("\n"), kind: KINDS.csv };
      predict();
    });
    section.addEventListener("click", async (e) => {
      const button = e.target.closest("[data-save]");
      if (!button) return;
      const blob = await (await post(button.dataset.save)).blob();
      const link = make("a", { href: URL.createObjectURL(blob), download: `predictions.${button.dataset.save}` });
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  // --------------------------------------------------------------------------------- beginning
  const pairs = gather();
  asked = new URLSearchParams(pairs).toString();
  const refused = document.querySelector(".problems .error") !== null; // what the address asked cannot be
  sections.forEach((section) => {
    const first = section.querySelector("script.first");
    if (first) {
      const view = JSON.parse(first.textContent);
      enliven(section, view, queryOf(section, pairs));
      if (view.pending) window.setTimeout(() => { if (shown.get(section) === view) ask(section, gather()); }, 1000);
    } else if (section.hasAttribute("data-waiting") && !refused) ask(section, pairs);
  });
})();
