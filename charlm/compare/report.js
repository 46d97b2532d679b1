"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#2f6fde", "#e0662f", "#2a9d62", "#b5488f", "#8a6d1f", "#2aa5b5", "#d04a4a", "#6b5bd2", "#7a8794", "#a0b030"];
const SHOWN_INITIALLY = 12;  // the number of curves

// Texts from runs become text nodes, never HTML.
function make(tag, attributes = {}, ...children) {
  const node = tag === "svg" || SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
const SVG_TAGS = new Set(["path", "line", "text", "circle", "g"]);

const number = (value, digits) => value === null ? "" : value.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
const perplexity = (nats) => nats === null ? null : Math.exp(nats);
const withError = (value, error) => number(value, 4) + (error ? ` ± ${number(error, 4)}` : "");
const valueText = (value) => value === null || value === undefined ? "" : Array.isArray(value) ? `(${value.join(", ")})` : String(value);

// Returns a function from a value of the column to its text. Numbers are rounded, and paths are shortened to file names. If two
// different values of the column would then have the same text, the texts have more digits or the full paths instead.
function columnTexts(values, isPath) {
  const distinct = new Map(values.map((value) => [valueText(value), value]));
  const shortened = (shorten) => {
    const texts = new Map([...distinct].map(([full, value]) => [full, shorten(value, full)]));
    return new Set(texts.values()).size === distinct.size ? texts : null;
  };
  const rounded = (digits) => shortened((value, full) => typeof value === "number" && !Number.isInteger(value) ? String(+value.toPrecision(digits)) : full);
  const texts = isPath ? shortened((value, full) => full.split("/").at(-1)) : [4, 6, 9, 12].map(rounded).find(Boolean);
  return (value) => texts?.get(valueText(value)) ?? valueText(value);
}

function duration(seconds) {
  if (seconds === null) return "";
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s` : `${Math.floor(s / 3600)} h ${String(Math.floor(s % 3600 / 60)).padStart(2, "0")} min`;
}

const FIGURES = [
  {name: "perplexity", value: (run) => perplexity(run.best), text: (run) => withError(perplexity(run.best), run.error * perplexity(run.best))},
  {name: "nats", value: (run) => run.best, text: (run) => withError(run.best, run.error)},
  {name: "bits", value: (run) => run.best === null ? null : run.best / Math.LN2, text: (run) => number(run.best === null ? null : run.best / Math.LN2, 4)},
  {name: "bits/byte", value: (run) => run.bits_per_byte, text: (run) => number(run.bits_per_byte, 4)},
  {name: "unknown", value: (run) => run.unknown, text: (run) => number(run.unknown, 0)},
  {name: "n", value: (run) => isGrouped() ? run.n ?? 1 : null, text: (run) => number(run.n ?? 1, 0)},
  {name: "at step", value: (run) => run.best_step, text: (run) => number(run.best_step, 0)},
  {name: "test", value: (run) => perplexity(run.test), text: (run) => number(perplexity(run.test), 4)},
  {name: "last", value: (run) => perplexity(run.last), text: (run) => number(perplexity(run.last), 4)},
  {name: "train", value: (run) => perplexity(run.train), text: (run) => number(perplexity(run.train), 4)},
  {name: "parameters", value: (run) => run.parameters, text: (run) => number(run.parameters, 0)},
  {name: "chars/s", value: (run) => run.chars_per_second, text: (run) => number(run.chars_per_second, 0)},
  {name: "time", value: (run) => run.seconds, text: (run) => duration(run.seconds)},
  {name: "parent", isText: true, value: (run) => run.parent, text: (run) => run.parent ?? ""},
  {name: "extended", isText: true, value: (run) => run.extended, text: (run) => run.extended ?? ""},
];
const NAMES = [
  {name: "run", isText: true, value: (run) => run.name, text: (run) => run.name},
  {name: "state", isText: true, value: (run) => run.state, text: (run) => run.state},
];

const state = {protocol: 0, sort: "perplexity", descending: false, hidden: new Set(), filter: "", single: false};

// A row of the table is a run, or a group of runs that differ only in their seed. Runs and groups have the same fields.
const isGrouped = () => !state.single && data.rows.some((row) => row.runs && row.protocol === state.protocol);
function rowsOfProtocol() { return (state.single ? data.runs : data.rows).filter((row) => row.protocol === state.protocol); }

function columns() {
  const runs = rowsOfProtocol();
  const keys = isGrouped() ? data.keys.filter((key) => key !== "seed") : data.keys;
  const differing = keys.filter((key) => new Set(runs.map((run) => JSON.stringify(run.config[key]))).size > 1);
  const ofConfig = differing.map((key) => {
    const values = runs.map((run) => run.config[key] ?? null), textOf = columnTexts(values, data.paths.includes(key));
    return {
      name: key,
      title: data.short[key],
      isText: values.some((value) => value !== null && typeof value !== "number"),
      value: (run) => run.config[key] ?? null,
      text: (run) => run.texts[key] ?? textOf(run.config[key]),
      full: (run) => run.texts[key] ?? valueText(run.config[key]),
    };
  });
  const others = [...NAMES, ...FIGURES.filter((column) => runs.some((run) => column.value(run) !== null))].map((column) => {
    if (!["run", "parent"].includes(column.name)) return column;
    const textOf = columnTexts(runs.map(column.value), true);
    return {...column, text: (run) => textOf(column.value(run)), full: column.text};
  });
  return [...others.slice(0, NAMES.length), ...ofConfig, ...others.slice(NAMES.length)];
}

function compareValues(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
}

function matches(run, term) {
  const condition = /^([\w.\/]+)(>=|<=|!=|==|=|>|<)(.*)$/.exec(term);
  if (condition) {
    const [, name, sign, wanted] = condition;
    const figure = [...NAMES, ...FIGURES].find((column) => column.name === name);
    const key = data.keys.concat(Object.keys(run.config)).find((known) => known === name || known.endsWith("." + name));
    const value = figure ? figure.value(run) : key ? run.config[key] : undefined;
    if (value === undefined || value === null) return false;
    const [a, b] = typeof value === "number" && wanted.trim() !== "" && !isNaN(wanted) ? [value, Number(wanted)] : [String(value), wanted];
    return {">=": a >= b, "<=": a <= b, "!=": a !== b, "=": a === b, "==": a === b, ">": a > b, "<": a < b}[sign];
  }
  const texts = [run.name, run.state, ...data.keys.map((key) => valueText(run.config[key]))];
  return texts.some((text) => text.toLowerCase().includes(term.toLowerCase()));
}

function filteredRows() {
  const terms = state.filter.split(/\s+/).filter(Boolean);
  const column = columns().find((each) => each.name === state.sort) || FIGURES[0];
  const runs = rowsOfProtocol().filter((run) => terms.every((term) => matches(run, term)));
  const sign = state.descending ? -1 : 1;
  return runs.sort((a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    return x === null || y === null ? compareValues(x, y) : sign * compareValues(x, y);
  });
}

const isShown = (run) => !state.hidden.has(run.id);
function colour(run) {
  return run.rank < COLOURS.length ? COLOURS[run.rank] : `hsl(${(run.rank * 137.5) % 360} 45% 58%)`;
}
function toggle(run) {
  state.hidden.has(run.id) ? state.hidden.delete(run.id) : state.hidden.add(run.id);
  draw();
}

// If the table is too wide, its long texts are shortened. If it is still too wide, the least important columns are left out. If
// the table would be too wide even then, as on a phone, it keeps all columns and scrolls sideways.
function drawTable() {
  const table = byId("table"), wide = table.parentElement;
  table.classList.remove("narrow");
  drawColumns([]);
  if (wide.scrollWidth <= wide.clientWidth) return;
  table.classList.add("narrow");
  const widths = new Map([...table.tHead.rows[0].cells].map((cell) => [cell.dataset.column, cell.offsetWidth]));
  const leftOut = [];
  let excess = wide.scrollWidth - wide.clientWidth;
  for (const name of data.least_important.filter((each) => widths.has(each) && each !== state.sort)) {
    if (excess <= 0) break;
    excess -= widths.get(name);
    leftOut.push(name);
  }
  if (leftOut.length && excess <= 0) drawColumns(leftOut);
}

function drawColumns(leftOut) {
  const shown = columns().filter((column) => !leftOut.includes(column.name));
  byId("table").tHead.replaceChildren(make("tr", {}, make("th"), ...shown.map((column) => make("th", {
    class: column.isText ? "text" : null,
    "data-column": column.name,
    title: column.name,
    "aria-sort": state.sort === column.name ? (state.descending ? "descending" : "ascending") : null,
  }, make("button", {onclick: () => {
    state.descending = state.sort === column.name && !state.descending;
    state.sort = column.name;
    draw();
  }}, ...breakable(column.title || column.name))))));
  const best = Math.min(...rowsOfProtocol().map((run) => run.best ?? Infinity));
  const rows = filteredRows().map((run) => make("tr", {"data-run": run.id},
    make("td", {}, swatch(run)),
    ...shown.map((column) => {
      if (column.name === "state") return make("td", {class: "text"}, make("span", {class: /^\w+$/.test(run.state) ? `state ${run.state}` : "state"}, run.state));
      const isBest = run.best !== null && run.best === best && ["perplexity", "nats", "bits", "bits/byte"].includes(column.name);
      const full = (column.full ?? column.text)(run);
      return make("td", {class: column.isText ? "text" : isBest ? "best" : null, title: full}, column.text(run));
    })));
  byId("table").tBodies[0].replaceChildren(...rows);
  if (!rows.length) byId("table").tBodies[0].append(make("tr", {}, make("td", {class: "empty", colspan: shown.length + 1}, "No run matches the filter.")));
  const all = rowsOfProtocol().length, runs = data.runs.filter((run) => run.protocol === state.protocol).length;
  const what = isGrouped() ? `${all} rows of ${runs} runs; runs that differ only in their seed are one row` : `${all} run${all === 1 ? "" : "s"}`;
  byId("why").textContent = `${rows.length === all ? "" : `${rows.length} of `}${what}`
    + (data.protocols.length > 1 ? "; the menu above has the runs evaluated under other protocols" : "")
    + (leftOut.length ? `; columns left out, because the page is too narrow: ${leftOut.join(", ")}` : "");
}

// Splits the heading of a column into nodes, so that a line may break after a dot or an underscore, but not inside a word.
const breakable = (heading) => heading.split(/(?<=[._])/).flatMap((part) => [make("wbr"), part]);

function swatch(run) {
  const style = `border-color: ${colour(run)};` + (isShown(run) ? `background: ${colour(run)}` : "");
  return make("button", {class: "swatch", style, "aria-pressed": isShown(run), "aria-label": "show this run's curve", onclick: () => toggle(run)});
}

function smoothed(values) {
  const weight = Number(byId("smooth").value);
  let mean = 0, total = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

function curves() {
  const axis = byId("axis").value, split = byId("split").value, log = byId("logx").checked;
  return filteredRows().filter(isShown).map((run) => {
    const {nats, low, high, [axis]: x} = run.curves[split];
    const kept = x.map((_, index) => index).filter((index) => !log || x[index] > 0);
    const [y, ...band] = [nats, low, high].map((values) => {
      const drawn = values ? smoothed(values).map(Math.exp) : [];
      return values ? kept.map((index) => drawn[index]) : null;
    });
    return {run, x: kept.map((index) => x[index]), y, band: band[0] ? band : null};
  }).filter((curve) => curve.x.length);
}

let view = null;  // the curves and scales of the chart, which the tooltip needs

function drawChart() {
  const svg = byId("chart");
  const width = svg.clientWidth || 800, height = svg.clientHeight || 420;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const drawn = curves();
  view = null;
  byId("tooltip").style.display = "none";
  if (!drawn.length) {
    svg.replaceChildren(make("text", {x: width / 2, y: height / 2, "text-anchor": "middle"}, "There are no curves to show. Click a square in the table to show the curve of its run."));
    return;
  }
  const log = byId("logx").checked;
  const margin = {left: 56, right: 16, top: 12, bottom: 42};
  const xs = drawn.flatMap((curve) => [curve.x[0], curve.x.at(-1)]);
  let [x0, x1] = [log ? Math.min(...xs) : 0, Math.max(...xs)];
  if (x0 === x1) { x0 = log ? x0 / 2 : 0; x1 = x1 * 1.1 || 1; }
  let y0 = Infinity, y1 = -Infinity;
  for (const curve of drawn) for (const value of curve.band ? curve.band.flat() : curve.y) { y0 = Math.min(y0, value); y1 = Math.max(y1, value); }
  const span = Math.log(y1 / y0) || 0.1;
  [y0, y1] = [y0 * Math.exp(-0.04 * span), y1 * Math.exp(0.04 * span)];
  const scaleX = (value) => margin.left + (width - margin.left - margin.right)
    * (log ? Math.log(value / x0) / Math.log(x1 / x0) : (value - x0) / (x1 - x0));
  const scaleY = (value) => height - margin.bottom - (height - margin.top - margin.bottom) * Math.log(value / y0) / Math.log(y1 / y0);
  const parts = [];
  for (const tick of logTicks(y0, y1)) {
    parts.push(make("line", {class: "grid", x1: margin.left, x2: width - margin.right, y1: scaleY(tick), y2: scaleY(tick)}));
    parts.push(make("text", {x: margin.left - 8, y: scaleY(tick) + 4, "text-anchor": "end"}, `${+tick.toPrecision(4)}`));
  }
  for (const tick of log ? logTicks(x0, x1) : linearTicks(x0, x1, width / 110)) {
    parts.push(make("line", {class: "grid", x1: scaleX(tick), x2: scaleX(tick), y1: margin.top, y2: height - margin.bottom}));
    parts.push(make("text", {x: scaleX(tick), y: height - margin.bottom + 18, "text-anchor": "middle"}, tickLabel(tick)));
  }
  const label = {step: "steps", chars: "characters trained on", seconds: "wall time"}[byId("axis").value];
  parts.push(make("text", {x: (margin.left + width - margin.right) / 2, y: height - 6, "text-anchor": "middle"}, label));
  for (const curve of [...drawn].reverse()) {
    const pointsOf = (values) => curve.x.map((value, index) => `${scaleX(value).toFixed(1)},${scaleY(values[index]).toFixed(1)}`);
    const points = pointsOf(curve.y);
    if (curve.band) {
      const [low, high] = curve.band.map(pointsOf);
      parts.push(make("path", {class: "band", fill: colour(curve.run), "data-run": curve.run.id, d: "M" + [...low, ...high.reverse()].join("L") + "Z"}));
    }
    parts.push(make("path", {class: "curve", stroke: colour(curve.run), "data-run": curve.run.id, d: "M" + points.join("L")}));
    if (points.length <= 24) {
      for (const point of points) {
        const [cx, cy] = point.split(",");
        parts.push(make("circle", {cx, cy, r: 2.6, fill: colour(curve.run)}));
      }
    }
  }
  parts.push(make("line", {id: "cursor", y1: margin.top, y2: height - margin.bottom, visibility: "hidden"}));
  svg.replaceChildren(...parts);
  view = {drawn, scaleX, scaleY, width};
}

function linearTicks(low, high, wanted) {
  const rough = (high - low) / Math.max(2, wanted), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high * 1.0000001; tick += step) ticks.push(tick);
  return ticks;
}
function logTicks(low, high) {
  const ticks = [];
  const factors = high / low > 100 ? [1] : high / low > 12 ? [1, 2, 5] : high / low > 3 ? [1, 1.5, 2, 3, 4, 5, 6, 8] : null;
  if (!factors) return linearTicks(low, high, 6).filter((tick) => tick >= low);
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10) {
    for (const factor of factors) if (factor * power >= low && factor * power <= high) ticks.push(factor * power);
  }
  return ticks;
}
function tickLabel(value) {
  if (byId("axis").value === "seconds") return duration(value);
  return value >= 1e6 ? `${+(value / 1e6).toPrecision(3)} M` : value >= 1e4 ? `${+(value / 1e3).toPrecision(3)} k` : `${+value.toPrecision(3)}`;
}

function showTooltip(event) {
  if (!view) return;
  const box = byId("chart").getBoundingClientRect();
  const [px, py] = [event.clientX - box.left, event.clientY - box.top];
  const near = view.drawn.map((curve) => {
    let index = 0;  // the index of the point that is nearest along the x axis
    for (let other = 1; other < curve.x.length; other++) {
      if (Math.abs(view.scaleX(curve.x[other]) - px) < Math.abs(view.scaleX(curve.x[index]) - px)) index = other;
    }
    return {curve, x: curve.x[index], y: curve.y[index], distance: Math.hypot(view.scaleX(curve.x[index]) - px, view.scaleY(curve.y[index]) - py)};
  });
  const nearest = near.reduce((a, b) => a.distance <= b.distance ? a : b);
  const at = view.scaleX(nearest.x);
  const rows = near.filter((each) => Math.abs(view.scaleX(each.x) - at) < 12)
    .sort((a, b) => Math.abs(view.scaleY(a.y) - py) - Math.abs(view.scaleY(b.y) - py)).slice(0, 8).sort((a, b) => a.y - b.y);
  const cursor = byId("cursor");
  cursor.setAttribute("visibility", "visible");
  cursor.setAttribute("x1", at);
  cursor.setAttribute("x2", at);
  byId("tooltip").replaceChildren(make("div", {class: "soft"}, 
    {step: `step ${number(nearest.x, 0)}`, chars: `${number(nearest.x, 0)} characters`, seconds: duration(nearest.x)}[byId("axis").value]),
    ...rows.map(({curve, y}) => make("div", {}, make("span", {class: "dot", style: `background: ${colour(curve.run)}`}),
      make("span", {class: "name"}, curve.run.name), make("b", {}, number(y, 4)))));
  const tooltip = byId("tooltip");
  tooltip.style.display = "block";
  const left = at + 16 + tooltip.offsetWidth > view.width ? Math.max(0, at - 16 - tooltip.offsetWidth) : at + 16;
  tooltip.style.left = `${left}px`;
  tooltip.style.top = `${Math.max(0, py - tooltip.offsetHeight / 2)}px`;
  for (const path of byId("chart").querySelectorAll(".curve, .band")) {
    path.classList.toggle("faint", view.drawn.length > 3 && path.dataset.run !== String(nearest.curve.run.id));
  }
}
function hideTooltip() {
  byId("tooltip").style.display = "none";
  byId("cursor")?.setAttribute("visibility", "hidden");
  for (const path of byId("chart").querySelectorAll(".faint")) path.classList.remove("faint");
}

function drawLegend() {
  byId("legend").replaceChildren(...filteredRows().map((run) => make("button", {
    "data-run": run.id, "aria-pressed": isShown(run), onclick: () => toggle(run), title: run.name,
  }, make("span", {class: "dot", style: `background: ${colour(run)}`}), make("span", {}, run.name))));
}

function drawPair() {
  const [left, right] = [data.runs[byId("left").value], data.runs[byId("right").value]];
  if (!left || !right) return;
  const steps = [...new Set([left, right].flatMap((run) => run.samples.map((sample) => sample.step)))].sort((a, b) => b - a);
  const chosen = byId("step").value;
  byId("step").replaceChildren(make("option", {value: "last"}, "last"), ...steps.map((step) => make("option", {value: step}, number(step, 0))));
  byId("step").value = steps.map(String).includes(chosen) ? chosen : "last";
  for (const [run, element] of [[left, "left_sample"], [right, "right_sample"]]) {
    const wanted = byId("step").value;
    const sample = wanted === "last" ? run.samples.at(-1) : run.samples.find((each) => String(each.step) === wanted);
    byId(element).textContent = sample ? sample.text : run.samples.length ? "No sample at this step." : "This run has written no samples.";
  }
  const keys = [...new Set([...Object.keys(left.config), ...Object.keys(right.config)])]
    .filter((key) => JSON.stringify(left.config[key]) !== JSON.stringify(right.config[key]));
  const rows = keys.map((key) => make("tr", {}, make("td", {}, key), make("td", {}, valueText(left.config[key])), make("td", {}, valueText(right.config[key]))));
  byId("diff").replaceChildren(...rows.length
    ? [make("thead", {}, make("tr", {}, make("th", {}, "key"), make("th", {}, left.name), make("th", {}, right.name))), make("tbody", {}, ...rows)]
    : [make("tbody", {}, make("tr", {}, make("td", {class: "empty"}, left === right ? "Left and right are the same run." : "These runs have the same config.")))]);
}

function draw() { drawTable(); drawChart(); drawLegend(); }

function chooseProtocol(protocol) {
  state.protocol = protocol;
  const runs = data.runs.filter((run) => run.protocol === protocol).sort((a, b) => compareValues(a.best, b.best));
  byId("single_label").hidden = !data.rows.some((row) => row.runs && row.protocol === protocol);
  chooseRows();
  const hasValidation = runs.some((run) => run.curves.validation.step.length > 1);
  byId("split").value = hasValidation ? "validation" : "train";
  const options = () => runs.map((run) => make("option", {value: run.id}, run.name));
  byId("left").replaceChildren(...options());
  byId("right").replaceChildren(...options());
  if (runs.length > 1) byId("right").value = runs[1].id;
  draw();
  drawPair();
}

// Gives each row its colour, and shows the curves of the best rows.
function chooseRows() {
  const ranked = rowsOfProtocol().sort((a, b) => compareValues(a.best, b.best));
  ranked.forEach((row, rank) => { row.rank = rank; });
  state.hidden = new Set(ranked.slice(SHOWN_INITIALLY).map((row) => row.id));
  byId("band_note").hidden = !isGrouped();
}

data.runs.forEach((run, id) => { run.id = id; });
data.rows = data.groups.map((group) => group.runs.length === 1 ? data.runs[group.runs[0]] : group);
data.rows.forEach((row, index) => { row.id ??= data.runs.length + index; });
byId("single").addEventListener("change", (event) => {
  state.single = event.target.checked;
  chooseRows();
  draw();
});
byId("about").textContent = `${data.runs.length} run${data.runs.length === 1 ? "" : "s"}, read ${data.read}`;
byId("protocol").replaceChildren(...data.protocols.map((words, protocol) => make("option", {value: protocol}, words)));
byId("protocol").addEventListener("change", (event) => chooseProtocol(Number(event.target.value)));
byId("filter").addEventListener("input", (event) => { 
  state.filter = event.target.value;
  const rows = filteredRows();
  if (!rows.some(isShown)) rows.slice(0, SHOWN_INITIALLY).forEach((run) => state.hidden.delete(run.id));
  draw();
});
for (const id of ["split", "axis", "logx", "smooth"]) byId(id).addEventListener("input", drawChart);
for (const id of ["left", "right", "step"]) byId(id).addEventListener("change", drawPair);
byId("chart").addEventListener("pointermove", showTooltip);
byId("chart").addEventListener("pointerdown", showTooltip);
byId("chart").addEventListener("pointerleave", hideTooltip);
window.addEventListener("resize", draw);
chooseProtocol(0);
