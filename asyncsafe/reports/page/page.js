/* Everything that comes from the program is put into the page as text, never as markup. */
(() => {
"use strict";

const { sites, places, stalls } = JSON.parse(document.getElementById("data").textContent);
const PAGE = 25;        // rows shown at once
const PRINTED = 500;    // rows that are printed
const $ = (id) => document.getElementById(id);
const total = sites.reduce((sum, site) => sum + site.seconds, 0);
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function draw(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const count = (number) => number.toLocaleString("en-US");

function duration(seconds) {
  if (seconds === null) return "";
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  return seconds >= 1e-3 ? `${(seconds * 1e3).toFixed(1)} ms` : `${(seconds * 1e6).toFixed(0)} µs`;
}

function where(number) {
  const [file, line, name] = places[number];
  return `${file}:${line} ${name}`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23" });
const at = (seconds) => clock.format(seconds * 1000);
const coarse = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The search, which table, flame graph and timeline follow ---------------------------------------

sites.forEach((site, number) => {
  site.number = number;
  const told = [site.headline, site.operation, site.subject, site.statement, site.reason, site.fix, where(site.at)];
  for (const place of [site.under, site.begun, ...site.stack]) if (place !== null) told.push(where(place));
  site.text = told.join("\n").toLowerCase();
});

let found = sites;
let later = 0;

function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  found = words.length ? sites.filter((site) => words.every((word) => site.text.includes(word))) : sites;
  $("found").textContent = words.length ? `${count(found.length)} of ${count(sites.length)} call sites` : "";
  sortSites();
  shown = 0;
  showTable();
  clearTimeout(later);
  later = setTimeout(showCharts, 150);
}

/** In two tasks of their own, so that what was typed meanwhile comes between. */
function showCharts() {
  clearTimeout(later);
  later = setTimeout(() => {
    showFlame();
    later = setTimeout(showStalls);
  });
}

// The table --------------------------------------------------------------------------------------

const COLUMNS = [
  { name: "call site", key: (site) => where(site.at), ascending: true },
  { name: "distribution", className: "distribution" },
  { name: "total", className: "number share", key: (site) => site.seconds },
  { name: "p50", className: "number p50", key: (site) => site.p50 },
  { name: "p95", className: "number p95", key: (site) => site.p95 },
  { name: "p99", className: "number p99", key: (site) => site.p99 },
  { name: "worst", className: "number worst", key: (site) => site.worst },
  { name: "waiting", className: "number waiting", key: (site) => (site.waiting.calls ? site.waiting.most : null), title: "How many tasks and callbacks waited for one call, at most" },
  { name: "calls", className: "number calls", key: (site) => site.calls },
];
let sorted = { column: COLUMNS[2], ascending: false };
let shown = 0;
let rows = PAGE;
const opened = new Set();

for (const column of COLUMNS) {
  const cell = make("th", { scope: "col", class: column.className, title: column.title });
  if (column.key) {
    const button = make("button", { type: "button" }, column.name);
    button.addEventListener("click", () => {
      const again = sorted.column === column;
      sorted = { column, ascending: again ? !sorted.ascending : Boolean(column.ascending) };
      sortSites();
      shown = 0;
      showTable();
    });
    cell.append(button);
  } else {
    cell.append(column.name);
  }
  column.cell = cell;
  $("table").tHead.rows[0].append(cell);
}

function sortSites() {
  const { column, ascending } = sorted;
  const sign = ascending ? 1 : -1;
  const keys = new Map(found.map((site) => [site, column.key(site)]));
  const byText = column === COLUMNS[0];
  found = [...found].sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    if (a === b) return one.number - other.number;
    if (a === null || b === null) return a === null ? 1 : -1;
    if (byText) return sign * (a < b ? -1 : 1);
    return sign * (a - b);
  });
}

function showTable() {
  for (const column of COLUMNS) {
    if (column === sorted.column) column.cell.setAttribute("aria-sort", sorted.ascending ? "ascending" : "descending");
    else column.cell.removeAttribute("aria-sort");
  }
  const body = $("table").tBodies[0];
  const here = found.slice(shown, shown + rows);
  body.replaceChildren(...here.flatMap((site) => (opened.has(site) ? [row(site), more(site)] : [row(site)])));
  if (!here.length) {
    const told = sites.length ? "No call site has all of these words." : "Nothing blocked the event loop.";
    body.append(make("tr", {}, make("td", { colspan: COLUMNS.length, class: "empty" }, told)));
  }
  $("page").textContent = here.length ? `${count(shown + 1)}–${count(shown + here.length)} of ${count(found.length)}` : "";
  $("previous").disabled = shown === 0;
  $("next").disabled = shown + rows >= found.length;
}

function row(site) {
  const button = make("button", { type: "button", "aria-expanded": opened.has(site) },
    make("span", { class: "what" }, make("code", {}, site.subject || site.operation), ...badges(site)),
    make("span", { class: "where", title: where(site.at) }, where(site.at)));
  const line = make("tr", { class: "site" }, make("td", {}, button));
  button.addEventListener("click", () => toggle(site, line, button));
  line.append(make("td", { class: "distribution" }, histogram(site)));
  const timed = (seconds) => (site.durations.length || site.seconds ? duration(seconds) : "");
  const share = make("progress", { max: 1, value: total ? site.seconds / total : 0, "aria-hidden": "true" });
  line.append(make("td", { class: "number share" }, site.refused ? "refused" : timed(site.seconds), share));
  for (const column of COLUMNS.slice(3)) {
    const value = column.key(site);
    const counted = column.name === "waiting" || column.name === "calls";
    const told = value === null ? "" : counted ? count(value) : timed(value);
    line.append(make("td", { class: column.className }, told));
  }
  return line;
}

function badges(site) {
  if (site.begun !== null) return [make("span", { class: "badge error" }, "shared transaction")];
  if (site.outcomes.raised) return [make("span", { class: "badge error" }, site.refused ? "refused" : "partly refused")];
  return site.level === "note" ? [make("span", { class: "badge note" }, "allowed")] : [];
}

function toggle(site, line, button) {
  const open = !opened.has(site);
  if (open) {
    opened.add(site);
    line.after(more(site));
  } else {
    opened.delete(site);
    line.nextElementSibling.remove();
  }
  button.setAttribute("aria-expanded", open);
}

function more(site) {
  const list = make("dl");
  const tell = (name, ...value) => list.append(make("dt", {}, name), make("dd", {}, ...value));
  tell("write instead", make("code", {}, site.fix));
  if (site.statement) tell("statement", make("pre", {}, make("code", {}, site.statement)));
  if (site.begun !== null) tell("transaction of", `${site.begun_by}, begun at ${where(site.begun)}`);
  tell("operation", make("code", {}, site.operation));
  tell("stack", make("ol", {}, ...site.stack.map((place) => make("li", { class: "code" }, where(place)))));
  tell("under", site.under === null ? "a callback of the event loop" : where(site.under), site.task ? `, task ${site.task}` : "");
  const outcomes = Object.entries(site.outcomes).filter(([, calls]) => calls).map(([name, calls]) => `${count(calls)} ${name === "raised" ? "refused" : name}`);
  tell("calls", outcomes.join(", "));
  if (site.reason) tell("allowed because", site.reason);
  if (site.durations.length) {
    tell("took", `p50 ${duration(site.p50)}, p95 ${duration(site.p95)}, p99 ${duration(site.p99)}, worst ${duration(site.worst)}`);
  }
  if (site.waiting.calls) {
    tell("waiting", `${count(site.waiting.most)} at most, ${(site.waiting.total / site.waiting.calls).toFixed(1)} on average, of ${count(site.waiting.calls)} calls that took a millisecond or more`);
  }
  return make("tr", { class: "more" }, make("td", { colspan: COLUMNS.length }, list, site.durations.length ? large(site) : ""));
}

/** Have the table show this call site, and its details. */
function reveal(site) {
  if (!found.includes(site)) {
    $("search").value = "";
    search();
  }
  shown = Math.floor(found.indexOf(site) / rows) * rows;
  opened.add(site);
  showTable();
  const index = found.slice(shown, found.indexOf(site)).reduce((sum, each) => sum + (opened.has(each) ? 2 : 1), 0);
  const button = $("table").tBodies[0].rows[index].querySelector("button");
  button.focus({ preventScroll: true });
  button.scrollIntoView({ block: "center", behavior: still ? "auto" : "smooth" });
}

// The distributions, all on the same logarithmic axis --------------------------------------------

const logs = sites.flatMap((site) => site.durations.map(([seconds]) => Math.log10(seconds)));
const low = Math.floor(logs.reduce((least, log) => Math.min(least, log), 0) * 2) / 2;
const high = Math.max(low + 1, Math.ceil(logs.reduce((most, log) => Math.max(most, log), -9) * 2 + 0.01) / 2);

function bars(site, width, height, bins) {
  const counts = new Array(bins).fill(0);
  for (const [seconds, calls] of site.durations) {
    const part = (Math.log10(seconds) - low) / (high - low);
    counts[Math.min(bins - 1, Math.max(0, Math.floor(part * bins)))] += calls;
  }
  const most = Math.max(...counts);
  const step = width / bins;
  let path = "";
  counts.forEach((calls, bin) => {
    if (!calls) return;
    const tall = Math.max(1.5, (calls / most) * height);
    path += `M${(bin * step).toFixed(1)} ${height}v${(-tall).toFixed(1)}h${(step - 0.8).toFixed(1)}v${tall.toFixed(1)}z`;
  });
  return draw("path", { class: "bars", d: path });
}

function histogram(site) {
  const svg = draw("svg", { width: 112, height: 26, viewBox: "0 0 112 26", role: "img" });
  svg.setAttribute("aria-label", site.durations.length ? `from ${duration(site.durations[0][0])} to ${duration(site.worst)}` : "no call was made");
  svg.append(draw("path", { class: "axis", d: "M0 25.5h112" }));
  if (site.durations.length) svg.append(bars(site, 112, 25, 28));
  return svg;
}

function large(site) {
  const [width, height] = [640, 110];
  const x = (seconds) => Math.min(width, Math.max(0, ((Math.log10(seconds) - low) / (high - low)) * width));
  const svg = draw("svg", { width, height: height + 34, viewBox: `-24 -16 ${width + 48} ${height + 34}`, role: "img" });
  svg.setAttribute("aria-label", `How many calls took how long: p50 ${duration(site.p50)}, p95 ${duration(site.p95)}, p99 ${duration(site.p99)}`);
  svg.setAttribute("class", "large");
  svg.append(bars(site, width, height, 96), draw("path", { class: "axis", d: `M0 ${height + 0.5}h${width}` }));
  for (let power = Math.ceil(low); power <= high; power++) {
    const tick = x(10 ** power);
    svg.append(draw("path", { class: "axis", d: `M${tick} ${height}v4` }));
    const told = duration(10 ** power).replace(".0 ", " ").replace(".00 ", " ");
    svg.append(draw("text", { x: tick, y: height + 16, "text-anchor": "middle" }, told));
  }
  let free = -Infinity;
  for (const name of ["p50", "p95", "p99"]) {
    const line = x(site[name]);
    svg.append(draw("path", { class: "quantile", d: `M${line} 0v${height}` }));
    if (line > free) svg.append(draw("text", { x: line, y: -4, "text-anchor": "middle" }, name));
    free = Math.max(free, line + 28);
  }
  return svg;
}

// The flame graph --------------------------------------------------------------------------------

let chart = null;

function tree() {
  const root = { name: "the event loop", value: 0, calls: 0, children: [], below: new Map(), kind: "root" };
  for (const site of found) {
    if (!site.seconds) continue;
    const path = [...site.stack].reverse().map((place) => {
      const [file, line, name, asynchronous] = places[place];
      return { key: `${file}\n${name}`, name, kind: asynchronous ? "async" : "sync", file, line };
    });
    path.push({ key: site.operation, name: site.subject || site.operation, kind: "call" });
    let node = root;
    node.value += site.seconds;
    node.calls += site.calls;
    for (const { key, ...frame } of path) {
      let next = node.below.get(key);
      if (!next) {
        next = { ...frame, value: 0, calls: 0, children: [], below: new Map() };
        node.below.set(key, next);
        node.children.push(next);
      }
      if (next.line !== frame.line) next.line = null;  // the function calls from several
      next.value += site.seconds;
      next.calls += site.calls;
      node = next;
    }
  }
  return root;
}

/** Put together what is far narrower than a pixel: of ten thousand call sites, most are. */
function gather(node, least) {
  const narrow = node.children.filter((child) => child.value < least);
  node.children = node.children.filter((child) => child.value >= least);
  for (const child of node.children) gather(child, least);
  if (!narrow.length) return;
  const sum = (name) => narrow.reduce((total, child) => total + child[name], 0);
  const name = narrow.length === 1 ? narrow[0].name : `${count(narrow.length)} more`;
  node.children.push({ name, kind: "root", value: sum("value"), calls: sum("calls"), children: [] });
}

const KINDS = { root: "--line", async: "--async", sync: "--sync", call: "--call" };

function showFlame() {
  const box = $("flame");
  const root = tree();
  gather(root, root.value / box.clientWidth / 5);
  box.replaceChildren();
  $("reset").hidden = true;
  $("flame-details").textContent = root.value ? "\u00a0" : "No call here took any time.";
  if (!root.value) return;
  const told = ({ name, file, line }) => (file ? `${file}${line === null ? "" : `:${line}`} ${name}` : name);
  const label = (d) => `${told(d.data)}: ${duration(d.data.value)}, ${((100 * d.data.value) / root.value).toFixed(1)} %, ${count(d.data.calls)} calls`;
  chart = flame.flamegraph()
    .width(box.clientWidth)
    .cellHeight(21)
    .inverted(true)
    .selfValue(false)
    .minFrameSize(1)
    .transitionDuration(still ? 0 : 200)
    .sort((one, other) => other.data.value - one.data.value)
    .tooltip(false)
    .setLabelHandler(label)
    .setColorMapper((d) => css(KINDS[d.data.kind]))
    .setDetailsHandler((text) => { $("flame-details").textContent = text || "\u00a0"; })
    .onClick((d) => {
      $("reset").hidden = !d.parent;
      requestAnimationFrame(() => makeKeyboard(box, label, d));
    });
  flame.select(box).datum(root).call(chart);
  // Its height allows for a title, which it has none of.
  const svg = box.querySelector("svg");
  const deepest = Math.max(...[...svg.querySelectorAll("g.frame")].map((g) => g.__data__.depth));
  svg.setAttribute("height", (deepest + 1) * 21 + 1);
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", "Flame graph of the stacks that blocked the loop");
  makeKeyboard(box, label, null);
}

/** One box can be reached by Tab, the others from it by the arrow keys. */
function makeKeyboard(box, label, current) {
  const boxes = new Map();
  for (const g of box.querySelectorAll("g.frame")) {
    boxes.set(g.__data__, g);
    g.setAttribute("role", "button");
    g.setAttribute("tabindex", "-1");
    g.setAttribute("aria-label", label(g.__data__));
    g.onfocus = () => { $("flame-details").textContent = label(g.__data__); };
    g.onkeydown = (event) => {
      const d = g.__data__;
      const beside = d.parent ? d.parent.children.filter((child) => boxes.has(child)) : [d];
      const child = (d.children || []).find((each) => boxes.has(each));
      const next = {
        ArrowUp: d.parent,
        ArrowDown: child,
        ArrowLeft: beside[beside.indexOf(d) - 1],
        ArrowRight: beside[beside.indexOf(d) + 1],
      }[event.key];
      if (event.key === "Enter" || event.key === " ") {
        g.dispatchEvent(new MouseEvent("click"));
        event.preventDefault();
      } else if (next && boxes.has(next)) {
        g.setAttribute("tabindex", "-1");
        boxes.get(next).setAttribute("tabindex", "0");
        boxes.get(next).focus();
        event.preventDefault();
      }
    };
  }
  const first = boxes.get(current) || boxes.values().next().value;
  if (first) first.setAttribute("tabindex", "0");
}

$("reset").addEventListener("click", () => {
  chart.resetZoom();
  $("reset").hidden = true;
});

// The timeline -----------------------------------------------------------------------------------

let plots = [];

/** A stem for each value, from the bottom of the plot, with a point at its end. */
function stems(color) {
  return (plot, series) => {
    const { ctx, bbox } = plot;
    const scale = plot.series[series].scale;
    const bottom = bbox.top + bbox.height;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left - 4, bbox.top - 4, bbox.width + 8, bbox.height + 4);
    ctx.clip();
    ctx.strokeStyle = ctx.fillStyle = css(color);
    ctx.lineWidth = Math.max(1, devicePixelRatio);
    plot.data[series].forEach((value, index) => {
      if (value === null) return;
      const x = plot.valToPos(plot.data[0][index], "x", true);
      const y = plot.valToPos(value, scale, true);
      ctx.globalAlpha = 0.55;
      ctx.beginPath();
      ctx.moveTo(x, bottom);
      ctx.lineTo(x, y);
      ctx.stroke();
      ctx.globalAlpha = 1;
      ctx.beginPath();
      ctx.arc(x, y, 2.2 * devicePixelRatio, 0, 2 * Math.PI);
      ctx.fill();
    });
    ctx.restore();
  };
}

function powers(least, most) {
  const found = [];
  for (let power = Math.round(Math.log10(least)); power <= Math.round(Math.log10(most)); power++) found.push(10 ** power);
  return found;
}

function showStalls() {
  const visible = new Set(found);
  const here = stalls.filter((stall) => visible.has(sites[stall.site]));
  for (const plot of plots) plot.destroy();
  plots = [];
  $("stalls").replaceChildren();
  $("stall-details").textContent = here.length ? "\u00a0" : "No stall was measured.";
  showLongest(here);
  if (!here.length) return;
  const width = $("stalls").clientWidth;
  const tell = (index) => {
    const stall = here[index];
    if (!stall) return "\u00a0";
    const waiting = stall.waiting === null ? "" : `, ${count(stall.waiting)} waiting`;
    return `${at(stall.start)}: ${duration(stall.seconds)}${waiting}, ${sites[stall.site].operation} at ${where(sites[stall.site].at)}`;
  };
  const axis = { stroke: () => css("--muted"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line"), width: 1 } };
  const plot = (title, values, color, y, height, more) => {
    const made = new uPlot({
      title,
      width,
      height,
      legend: { show: false },
      cursor: { sync: { key: "stalls" }, drag: { x: true, y: false }, points: { size: 9, stroke: () => css(color), fill: () => css("--surface") } },
      // Wide enough that a single stall doesn't fill it.
      scales: { x: { time: true, range: (_, least, most) => { const rim = Math.max(0.05, (most - least) * 0.02); return [least - rim, most + rim]; } }, y },
      axes: [{ ...axis, space: 90, values: (_, splits, __, ___, step) => splits.map((value) => (step < 1 ? at(value) : coarse.format(value * 1000))) }, { ...axis, size: 62, ...more }],
      series: [{}, { stroke: () => css(color), paths: () => null, points: { show: false } }],
      hooks: {
        drawSeries: [stems(color)],
        setCursor: [(self) => { if (self.cursor.idx !== null && self.cursor.idx !== undefined) $("stall-details").textContent = tell(self.cursor.idx); }],
      },
    }, [here.map((stall) => stall.start), values], $("stalls"));
    let pressed = null;
    made.over.addEventListener("mousedown", (event) => { pressed = event.clientX; });
    made.over.addEventListener("mouseup", (event) => {
      const stall = here[made.cursor.idx];
      if (stall && pressed !== null && Math.abs(event.clientX - pressed) < 3) reveal(sites[stall.site]);
    });
    plots.push(made);
  };
  const least = here.reduce((lowest, stall) => Math.min(lowest, stall.seconds), Infinity);
  const most = here.reduce((highest, stall) => Math.max(highest, stall.seconds), 0);
  plot("stood still for", here.map((stall) => stall.seconds), "--stall", { distr: 3, range: [10 ** Math.floor(Math.log10(least)), 10 ** Math.ceil(Math.log10(most) + 0.01)] }, 220,
    { splits: (_, axis, least, most) => powers(least, most), values: (_, splits) => splits.map((value) => (value === null ? "" : duration(value).replace(".0 ", " ").replace(".00 ", " "))) });
  if (here.some((stall) => stall.waiting !== null)) {
    const waited = here.reduce((highest, stall) => Math.max(highest, stall.waiting || 0), 1);
    plot("waiting meanwhile", here.map((stall) => stall.waiting), "--waiting", { range: [0, waited * 1.1] }, 150,
      { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] });
  }
}

function showLongest(here) {
  const longest = [...here].sort((one, other) => other.seconds - one.seconds).slice(0, 10);
  $("longest").hidden = !longest.length;
  $("longest").tBodies[0].replaceChildren(...longest.map((stall) => {
    const site = sites[stall.site];
    const button = make("button", { type: "button" }, where(site.at));
    button.addEventListener("click", () => reveal(site));
    return make("tr", {},
      make("td", { class: "when" }, at(stall.start)),
      make("td", { class: "number" }, duration(stall.seconds)),
      make("td", { class: "number" }, stall.waiting === null ? "" : count(stall.waiting)),
      make("td", {}, button));
  }));
}

// The theme --------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
const THEMES = ["automatic", "light", "dark"];
let theme = "automatic";
try {
  theme = THEMES.find((name) => name === localStorage.getItem("asyncsafe-theme")) || theme;
} catch { /* a page that may keep nothing */ }

function setTheme(printing) {
  const now = printing ? "light" : theme === "automatic" ? (dark.matches ? "dark" : "light") : theme;
  document.documentElement.dataset.theme = now;
  $("theme").lastElementChild.textContent = theme;
}

$("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  try {
    localStorage.setItem("asyncsafe-theme", theme);
  } catch { /* as above */ }
  setTheme();
  showCharts();
});
dark.addEventListener("change", () => {
  setTheme();
  showCharts();
});

// ------------------------------------------------------------------------------------------------

$("search").addEventListener("input", search);
if ($("shared")) {
  $("shared").addEventListener("click", () => {
    $("search").value = "an open transaction";
    search();
  });
}
$("previous").addEventListener("click", () => { shown = Math.max(0, shown - rows); showTable(); });
$("next").addEventListener("click", () => { shown += rows; showTable(); });
addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== $("search")) {
    event.preventDefault();
    $("search").focus();
  }
});
addEventListener("beforeprint", () => {
  rows = PRINTED;
  shown = 0;
  setTheme(true);
  showTable();
  showFlame();
  showStalls();
});
addEventListener("afterprint", () => {
  rows = PAGE;
  setTheme();
  showTable();
  showCharts();
});
let width = 0;
new ResizeObserver(() => {
  if ($("flame").clientWidth === width) return;
  width = $("flame").clientWidth;
  clearTimeout(later);
  later = setTimeout(showCharts, 100);
}).observe($("flame"));

if (stalls.length) {
  const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });
  $("period").textContent = day.formatRange(stalls[0].start * 1000, stalls[stalls.length - 1].start * 1000);
}
setTheme();
sortSites();
showTable();
width = $("flame").clientWidth;
showCharts();
})();
