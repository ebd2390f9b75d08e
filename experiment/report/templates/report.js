// What report.html adds to the plain page: points that name their cell, legends that hide labels, tables to sort and
// filter, and a slider over keep ratios. It reads nothing but the page; without it, the page still shows every result.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const plots = all("figure.plot");

function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// Of the items of a plot, one is a stop of the Tab key. Arrows to the left and right move on to the next item that is
// not hidden, those up and down to the next row.
function stopAt(items, chosen = items.find(item => !item.closest(".off"))) {
  for (const item of items) item.setAttribute("tabindex", item === chosen ? 0 : -1);
}

const KEYS = { ArrowRight: [1, false], ArrowDown: [1, true], ArrowLeft: [-1, false], ArrowUp: [-1, true] };

function walk(items, rowOf) {
  stopAt(items);
  for (const item of items) item.addEventListener("keydown", event => {
    if (!(event.key in KEYS)) return;
    event.preventDefault(); // no scrolling
    const [step, byRow] = KEYS[event.key], order = step > 0 ? items : [...items].reverse();
    const next = order.slice(order.indexOf(item) + 1)
      .find(other => !other.closest(".off") && (!byRow || rowOf(other) !== rowOf(item)));
    if (next) stopAt(items, next);
    next?.focus();
  });
}

// Points: a tip on hover and focus.
function namePoints() {
  const tip = make("div", { id: "tip", role: "tooltip", hidden: true });
  let shown = null;
  document.body.append(tip);

  function place() {
    if (!shown) return;
    const point = shown.getBoundingClientRect(), { width, height } = tip.getBoundingClientRect();
    const room = document.documentElement, below = point.bottom + 6, above = point.top - height - 6;
    tip.style.left = `${Math.max(4, Math.min(point.right + 6, room.clientWidth - width - 4))}px`;
    tip.style.top = `${below + height < room.clientHeight ? below : Math.max(4, above)}px`;
  }
  function show(point) {
    shown = point;
    tip.hidden = !point;
    const [name, ...facts] = point ? point.getAttribute("aria-label").split("\n") : [""];
    tip.replaceChildren(make("strong", {}, name), `\n${facts.join("\n")}`);
    place();
  }
  for (const point of all(".point")) {
    const title = point.querySelector("title");
    point.setAttribute("aria-label", title.textContent);
    title.remove(); // browsers show titles, too
    for (const event of ["pointerenter", "focus"]) point.addEventListener(event, () => show(point));
    for (const event of ["pointerleave", "blur"]) point.addEventListener(event, () => show(null));
  }
  for (const plot of plots) walk(all(".point", plot), point => point.parentElement);
  addEventListener("scroll", place, true);
  addEventListener("keydown", event => event.key === "Escape" && show(null));
}

// Legends: the entries of a label are buttons that hide and show it in all plots.
function switchLabels() {
  const off = new Set(), entries = all("[data-entry]"), buttons = entries.filter(entry => entry.textContent);
  const resets = plots.map(plot => {
    const reset = make("button", { type: "button", textContent: "Show all labels" });
    reset.addEventListener("click", () => {
      off.clear();
      update();
      plot.querySelector("[role=button][tabindex='0']").focus(); // the reset disappears
    });
    plot.querySelector("figcaption").append(" ", reset);
    return reset;
  });

  function update() {
    for (const part of all("[data-label]")) part.classList.toggle("off", off.has(part.dataset.label));
    for (const entry of entries) entry.classList.toggle("dim", off.has(entry.dataset.entry));
    for (const button of buttons) button.setAttribute("aria-pressed", !off.has(button.dataset.entry));
    for (const reset of resets) reset.hidden = !off.size;
    for (const plot of plots) stopAt(all(".point", plot));
  }
  for (const entry of entries) {
    const toggle = event => {
      if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      if (!off.delete(entry.dataset.entry)) off.add(entry.dataset.entry);
      update();
    };
    for (const event of ["click", "keydown"]) entry.addEventListener(event, toggle);
  }
  for (const button of buttons) {
    button.setAttribute("role", "button");
    button.setAttribute("aria-label", button.textContent);
  }
  for (const plot of plots) walk(all("[role=button]", plot), button => button);
  update();
  plots[0]?.before(make("p", { className: "tools" }, "Points name their cell on hover and focus; arrow keys walk along a "
    + "curve. An entry of a legend hides and shows its label in all plots."));
}

// Tables: numbers as `words.numbers` writes them, such as −0.47, 1,234, 40.8 M, 4.0×, 84.2 ± 0.3, 95.1 (20.4×) †.
const NUMBER = /^(?:≤ )?([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?) ?([%×kMGsh]|min)?(?: ± \S+)?(?: \(.*\))?(?: †)?$/;
const UNITS = { k: 1e3, M: 1e6, G: 1e9, min: 60, h: 3600 };

function keyOf(text) {
  const match = NUMBER.exec(text.replace("−", "-"));
  return match ? Number(match[1].replaceAll(",", "")) * (UNITS[match[2]] || 1) : text;
}

// Whatever the direction, numbers come before text, and missing values last.
function compare(a, b, sign) {
  const rank = key => (key === "" || key === "–" ? 2 : typeof key === "string" ? 1 : 0);
  if (rank(a) || rank(b)) return rank(a) - rank(b) || sign * `${a}`.localeCompare(b, "en", { numeric: true });
  return sign * (a - b);
}

function sortable(table) {
  const body = table.tBodies[0], rows = [...body.rows], headers = all("th", table);
  headers.forEach((header, column) => {
    const button = make("button", { type: "button", title: "Sort" }, ...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const order = { ascending: "descending", descending: "none" }[header.ariaSort] || "ascending";
      for (const each of headers) each.ariaSort = each === header ? order : "none";
      const key = row => keyOf(row.cells[column].textContent), sign = order === "ascending" ? 1 : -1;
      body.append(...(order === "none" ? rows : [...rows].sort((a, b) => compare(key(a), key(b), sign))));
    });
  });
}

const LONG = 8; // rows; longer tables have a filter

function filterable(table) {
  const rows = [...table.tBodies[0].rows], input = make("input", { type: "search" }), count = make("output");
  if (rows.length <= LONG) return;
  const update = () => {
    const words = input.value.toLowerCase().split(" ");
    for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    const shown = rows.filter(row => !row.hidden).length;
    count.textContent = shown ? `${shown} of ${rows.length} rows` : `No row matches. All ${rows.length} rows are hidden.`;
  };
  input.addEventListener("input", update);
  update();
  table.parentElement.before(make("p", { className: "tools" }, make("label", {}, "Filter rows ", input), " ", count));
}

// Layers: a slider over the heat maps of all keep ratios, in place of the picture of a few.
function slideOverKeepRatios(figure) {
  const { layers, maps, colors, smallest } = JSON.parse(figure.querySelector("script").textContent);
  const slider = make("input", { type: "range", min: 0, max: maps.length - 1, value: 0 });
  const output = make("output"), table = make("table"), head = (scope, text) => make("th", { scope }, text);

  function field(kept) {
    if (kept === null) return make("td", {}, "–");
    const cell = make("td", {}, kept.toFixed(kept < 9.95 ? 1 : 0));
    const darkness = Math.log(Math.max(kept, smallest) / 100) / Math.log(smallest / 100);
    cell.style.background = colors[Math.round((colors.length - 1) * (1 - darkness))];
    cell.style.color = kept > 8.5 ? "black" : "white"; // whichever has more contrast
    return cell;
  }
  function update() {
    const { title, labels, kept } = maps[slider.value];
    slider.ariaValueText = output.textContent = title.replace("keep ratio ", "");
    const rows = layers.map((layer, index) => make("tr", {}, head("row", layer), ...kept[index].map(field)));
    const header = make("tr", {}, ...["Layer", ...labels].map(text => head("col", text)));
    const caption = make("caption", {}, `Parameters kept (%), ${title}`);
    table.replaceChildren(caption, make("thead", {}, header), make("tbody", {}, ...rows));
  }
  slider.addEventListener("input", update);
  update();
  const tools = make("p", { className: "tools" }, make("label", {}, "Keep ratio ", slider), " ", output);
  figure.prepend(make("div", { className: "heat" }, tools, make("div", { className: "scroll" }, table)));
}

namePoints();
switchLabels();
for (const table of all("table")) {
  sortable(table);
  filterable(table);
}
all("figure.layers").forEach(slideOverKeepRatios);
