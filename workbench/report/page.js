"use strict";
/* Draws the figures and runs the tables of a report. Everything it reads is in this file, as JSON; text goes into the
   page as text only. */
(() => {
  const root = document.documentElement;
  async function read(id) {
    const node = document.getElementById(id);
    if (node.type === "application/json") return JSON.parse(node.textContent);
    const bytes = Uint8Array.from(atob(node.textContent), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
  }
  const shared = JSON.parse(document.getElementById("shared").textContent); // {template, config, dark: light colour -> dark colour}
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme === "dark" || (root.dataset.theme === "auto" && system.matches);

  /* ---- figures: the colours of a dark page by the same table and rule as workbench.plots.theme */

  const hex = (n) => Number(n).toString(16).padStart(2, "0");
  function darkened(value, isColour) {
    if (Array.isArray(value)) {
      return isColour || value.some((item) => item && typeof item === "object")
        ? value.map((item) => darkened(item, isColour)) : value;
    }
    if (value && typeof value === "object") {
      const made = {};
      for (const [key, item] of Object.entries(value)) {
        made[key] = darkened(item, key.endsWith("color") || key === "colorscale" || key === "colorway");
      }
      return made;
    }
    if (!isColour || typeof value !== "string") return value;
    const faded = /^rgba\((\d+),(\d+),(\d+),([\d.e-]+)\)$/.exec(value);
    if (!faded) return shared.dark[value] ?? value;
    const solid = "#" + hex(faded[1]) + hex(faded[2]) + hex(faded[3]);
    const to = shared.dark[solid] ?? solid;
    return `rgba(${parseInt(to.slice(1, 3), 16)},${parseInt(to.slice(3, 5), 16)},${parseInt(to.slice(5, 7), 16)},${faded[4]})`;
  }

  const drawn = new Set();
  async function draw(node) {
    drawn.add(node);
    const made = await read(node.dataset.figure);
    made.layout.template = shared.template;
    const shown = isDark() ? darkened(made, false) : made;
    return Plotly.react(node, shown.data, shown.layout, shared.config);
  }
  const figures = [...document.querySelectorAll("[data-figure]")];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "800px" });
  figures.forEach((node) => watcher.observe(node));
  /* The others while the browser is idle, so that a printed page has them all. */
  const idle = window.requestIdleCallback ?? ((task) => setTimeout(task, 200));
  function drawNext() {
    const node = figures.find((one) => !drawn.has(one));
    if (!node) return;
    watcher.unobserve(node);
    draw(node).then(() => idle(drawNext));
  }
  idle(drawNext);
  const drawAll = () => Promise.all(figures.filter((node) => !drawn.has(node)).map(draw));
  window.addEventListener("beforeprint", drawAll);

  const choice = document.getElementById("theme-choice");
  choice.value = root.dataset.theme;
  const recolour = () => drawn.forEach(draw);
  choice.addEventListener("change", () => { root.dataset.theme = choice.value; recolour(); });
  system.addEventListener("change", () => { if (root.dataset.theme === "auto") recolour(); });

  /* ---- tables */

  const make = (name, facts = {}, ...inside) => {
    const node = Object.assign(document.createElement(name), facts);
    node.append(...inside);
    return node;
  };
  const number = (value) => value === "inf" ? Infinity : value === "-inf" ? -Infinity : value;
  function said(value, column) {
    if (value === null) return "–";
    if (value === true) return "yes";
    if (value === false) return "no";
    if (column.number && typeof value === "number" && !Number.isInteger(value)) {
      return Math.abs(value) < 1e-4 ? String(Number(value.toPrecision(3)).toExponential()) : String(Number(value.toPrecision(4)));
    }
    return String(value);
  }
  function compare(a, b, column) {
    if (column.number) return number(a) - number(b) || 0;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  const CONDITION = /^(.+?)(>=|<=|!=|=|>|<)(.*)$/;
  const TESTS = {
    ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b,
    "=": (a, b) => a === b, "!=": (a, b) => a !== b,
  };
  /* `layer=3 score>0.1 word`: every part must hold; a word is looked for in all columns. */
  function parse(text, columns) {
    const parts = [];
    for (const word of text.split(/\s+/).filter(Boolean)) {
      const match = CONDITION.exec(word);
      const column = match && columns.find((one) => one.name.toLowerCase() === match[1].toLowerCase());
      if (!match) {
        const wanted = word.toLowerCase();
        parts.push((row) => columns.some((one) => said(one.values[row], one).toLowerCase().includes(wanted)));
      } else if (!column) {
        return { error: `There is no column “${match[1]}”.` };
      } else if (column.number) {
        const wanted = Number(match[3]);
        if (match[3] === "" || Number.isNaN(wanted)) return { error: `“${match[3]}” is no number.` };
        parts.push((row) => column.values[row] !== null && TESTS[match[2]](number(column.values[row]), wanted));
      } else {
        const wanted = match[3].toLowerCase();
        parts.push((row) => TESTS[match[2]](said(column.values[row], column).toLowerCase(), wanted));
      }
    }
    return { keep: (row) => parts.every((part) => part(row)) };
  }

  async function table(node) {
    const data = await read(node.dataset.table);
    const columns = data.columns;
    const count = columns.length ? columns[0].values.length : 0;
    const natural = Array.from({ length: count }, (_, row) => row);
    let rows = natural, page = 0, size = 20, by = null, falling = false, problem = "";

    const filter = make("input", { type: "search", placeholder: "filter: words, or score>0.1 layer=3" });
    filter.setAttribute("aria-label", `Filter ${node.dataset.name}`);
    const status = make("span", { className: "table-status" });
    status.setAttribute("role", "status");
    const back = make("button", { type: "button", textContent: "‹ previous" });
    const next = make("button", { type: "button", textContent: "next ›" });
    const sizes = make("select", {}, ...[20, 100, 500].map((n) => make("option", { value: n, textContent: `${n} rows` })));
    sizes.setAttribute("aria-label", "Rows per page");
    const body = make("tbody");
    const heads = columns.map((column) => {
      const button = make("button", { type: "button", textContent: column.name });
      const head = make("th", { scope: "col", className: column.number ? "n" : "" }, button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        falling = by === column && !falling;
        by = column;
        page = 0;
        arrange();
      });
      return head;
    });
    const view = make("div", { className: "wide", tabIndex: 0 },
      make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body));
    view.setAttribute("role", "region");
    view.setAttribute("aria-label", `Table ${node.dataset.name}`);
    node.replaceChildren(make("div", { className: "table-tools" }, filter, sizes, back, next, status), view);

    function arrange() {
      const wanted = parse(filter.value, columns);
      problem = wanted.error ?? "";
      rows = problem ? natural.slice() : natural.filter(wanted.keep);
      if (by) {
        const sign = falling ? -1 : 1;
        rows.sort((a, b) => {
          const x = by.values[a], y = by.values[b];
          if (x === null || y === null) return (x === null) - (y === null) || a - b; // undefined last, either way
          return sign * compare(x, y, by) || a - b;
        });
      }
      heads.forEach((head, at) => {
        const order = columns[at] !== by ? "none" : falling ? "descending" : "ascending";
        head.setAttribute("aria-sort", order);
      });
      show();
    }
    function show() {
      const pages = Math.max(1, Math.ceil(rows.length / size));
      page = Math.min(page, pages - 1);
      const here = rows.slice(page * size, (page + 1) * size);
      body.replaceChildren(...here.map((row) => make("tr", {}, ...columns.map((column) =>
        make("td", { className: column.number ? "n" : "", textContent: said(column.values[row], column) })))));
      const range = rows.length ? `${page * size + 1}–${page * size + here.length} of ${rows.length}` : "no rows";
      const cut = data.rows > count ? ` (the first ${count} of ${data.rows} rows are in this file)` : "";
      status.textContent = problem || range + (rows.length < count ? `, filtered from ${count}` : "") + cut;
      back.disabled = page === 0;
      next.disabled = page >= pages - 1;
    }
    filter.addEventListener("input", () => { page = 0; arrange(); });
    sizes.addEventListener("change", () => { size = Number(sizes.value); page = 0; show(); });
    back.addEventListener("click", () => { page -= 1; show(); });
    next.addEventListener("click", () => { page += 1; show(); });
    by = columns.find((column) => column.name === data.sort) ?? null;
    arrange();
  }
  /* A table in a closed section is built when the section is opened. */
  const open = [];
  for (const node of document.querySelectorAll("[data-table]")) {
    const closed = node.closest("details:not([open])");
    if (closed) closed.addEventListener("toggle", () => table(node), { once: true });
    else open.push(table(node));
  }
  Promise.all(open).then(() => { root.dataset.ready = "yes"; });
})();
