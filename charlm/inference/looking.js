"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line", "text", "circle", "title"]);

// Texts from runs and corpora become text nodes, never HTML.
function make(tag, attributes = {}, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const fixed = (value, digits) => value === null ? "" : value.toFixed(digits);
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
const count = (value) => value.toLocaleString("en");
const bits = (nats) => nats === null ? null : nats / Math.LN2;

// A control character, or another character that would be invisible, is shown as an escape with its code point.
const isOdd = (name) => /^[\p{C}\p{Zl}\p{Zp}]$/u.test(name);
const escaped = (name) => `\\u{${name.codePointAt(0).toString(16)}}`;
function label(id) {
  const name = data.names[id];
  if (name === " ") return "␣";
  if (name === "\n") return "↵";
  if (name === "\t") return "⇥";
  return isOdd(name) ? escaped(name) : name;
}
const isLongName = (id) => id < data.specials || data.names[id].startsWith("<0x");

// The text: one element for each symbol, and a line before each document except the first one.
const symbols = data.ids.map((id, position) => {
  const name = data.names[id];
  const shown = name === "\n" ? "↵\n" : name === "\t" || name === " " ? name : data.characters?.[position] ?? label(id);
  const node = make("i", isLongName(id) || name === "\n" || isOdd(name) ? {class: "special"} : {}, shown);
  node.position = position;
  return node;
});
byId("text").append(...symbols);
for (const position of data.starts.slice(1)) symbols[position].before(make("hr"));

// What can colour the text. A signal has one value for each symbol, such as the surprisal. A series is a quantity of a layer,
// such as a gate. It has several units, and each unit has one value for each symbol.
const sources = [
  ...data.signals.map((signal) => ({title: signal.name, signal})),
  ...data.series.map((series) => ({title: `layer ${series.layer}: ${series.name}${series.gate ? " (gate)" : ""}`, series})),
];
const groups = {};
sources.forEach((source, index) => {
  const name = source.signal ? "Text" : `Layer ${source.series.layer}`;
  groups[name] ??= byId("source").appendChild(make("optgroup", {label: name}));
  groups[name].append(make("option", {value: index}, source.title));
});
const sourceOfSeries = (index) => data.signals.length + index;

// The values of one unit. Only the bytes of this unit are decoded; see `_series` in looking.py.
function unitValues(series, unit) {
  const length = Math.ceil(data.ids.length / 3) * 4;
  const decoded = atob(series.data.slice(unit * length, (unit + 1) * length));
  const values = new Array(data.ids.length);
  for (let position = 0; position < values.length; position++) {
    const code = decoded.charCodeAt(position);
    values[position] = series.gate ? code / 255 : (code - 128) / 127 * series.scale[unit];
  }
  return values;
}

let values = [];
function colour() {
  const source = sources[byId("source").value];
  byId("unit_label").hidden = Boolean(source.signal);
  let low = 0, high = 1, unitOfMeasure = "";
  if (source.signal) {
    values = source.signal.values;
    unitOfMeasure = source.signal.unit;
    high = unitOfMeasure === "bits" ? 8 : values.reduce((most, value) => Math.max(most, value ?? 0), 0) || 1;
  } else {
    const unit = Math.min(Math.max(0, Math.floor(Number(byId("unit").value) || 0)), source.series.units - 1);
    byId("unit").max = source.series.units - 1;
    if (byId("unit").value !== String(unit)) byId("unit").value = unit;
    values = unitValues(source.series, unit);
    if (!source.series.gate) [low, high] = [-(source.series.scale[unit] || 1), source.series.scale[unit] || 1];
  }
  for (let position = 0; position < symbols.length; position++) {
    symbols[position].style.backgroundColor = shade(values[position], low, high);
  }
  byId("low").textContent = low ? low.toPrecision(3) : `0${unitOfMeasure && ` ${unitOfMeasure}`}`;
  byId("high").textContent = `${Number(high.toPrecision(3))}${unitOfMeasure && ` ${unitOfMeasure} or more`}`;
  const stops = [0, 0.5, 1].map((part) => shade(low + part * (high - low), low, high) || "transparent");
  document.querySelector("#scale .ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  for (const button of document.querySelectorAll(".unit")) {
    const isChosen = button.dataset.source === byId("source").value && button.dataset.unit === byId("unit").value;
    button.setAttribute("aria-pressed", String(isChosen));
  }
  if (current !== null) showDetails();
}

// Positive values are orange, negative values are blue.
function shade(value, low, high) {
  if (value === null) return "";
  const strength = Math.min(1, Math.abs(value) / Math.max(high, -low));
  return `rgba(var(--${value < 0 ? "low" : "high"}), ${(0.8 * strength).toFixed(3)})`;
}

function choose(source, unit) {
  byId("source").value = source;
  byId("unit").value = unit;
  colour();
}

// The details of the symbol under the pointer.
let current = null;
function move(position) {
  if (current !== null) symbols[current].classList.remove("current");
  current = Math.min(Math.max(0, position), symbols.length - 1);
  symbols[current].classList.add("current");
  showDetails();
}

function showDetails() {
  const id = data.ids[current], surprisal = data.signals[0].values[current];
  const rows = data.likeliest[current].map((next, rank) => make("tr", {},
    make("td", {class: "symbol"}, label(next)), make("td", {}, percent(data.probabilities[current][rank]))));
  const source = sources[byId("source").value];
  const name = source.signal ? source.title : `${source.title}, unit ${byId("unit").value}`;
  byId("details").replaceChildren(
    make("p", {}, make("b", {}, label(id)), ` at position ${count(current + 1)}`),
    make("p", {}, surprisal === null ? `the model does not predict this ${data.unit}` :
      `surprisal ${surprisal.toFixed(2)} bits`),
    make("p", {}, `${name}: ${values[current] === null ? "none" : Number(values[current].toPrecision(3))}`),
    make("p", {class: "soft"}, `likeliest next ${data.unit}s`),
    make("table", {id: "next"}, ...rows),
  );
}

// If the arrow keys scroll the text, the browser reports that the pointer is over another symbol, although the pointer did not
// move. Such a report is ignored.
let pointer = "";
byId("text").addEventListener("mousemove", (event) => {
  const place = `${event.clientX} ${event.clientY}`;
  if (event.target.position !== undefined && place !== pointer) move(event.target.position);
  pointer = place;
});
byId("text").addEventListener("keydown", (event) => {
  const to = {ArrowRight: (current ?? -1) + 1, ArrowLeft: (current ?? 1) - 1, Home: 0, End: symbols.length - 1}[event.key];
  if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  move(to);
  symbols[current].scrollIntoView({block: "nearest"});
});
byId("source").addEventListener("change", colour);
byId("unit").addEventListener("input", () => { if (byId("unit").value !== "") colour(); });
byId("unit").addEventListener("change", colour);

// The header.
byId("title").textContent = data.title;
byId("about").replaceChildren(...[`Text: ${data.where}.`, ...data.notes].map((note) => make("p", {}, note)));

// The units that were found.
const row = (cells, tag = "td") => make("tr", {}, ...cells.map((cell, index) => make(tag, index ? {} : {class: "text"}, cell)));
byId("searched").textContent = `The number of a unit is the correlation between its activation after a symbol and the ` +
  `property of this symbol. The units were chosen on the first ${count(data.searched.chosen)} ${data.unit}s of ` +
  `${data.searched.where}. The numbers were then computed on the next ${count(data.searched.tested)} ${data.unit}s. ` +
  `Click on a unit to colour the text by its values.`;
byId("found").append(...data.found.map((each) => make("tr", {},
  make("td", {class: "text", title: each.meaning}, each.property),
  make("td", {class: "text"}, ...(each.units.length ? each.units.map((found) => {
    const series = data.series[found.series], source = sourceOfSeries(found.series);
    const text = `layer ${series.layer} ${series.name} ${found.unit}: ${found.correlation.toFixed(2)}`;
    return make("button", {
      class: "unit", type: "button", "aria-pressed": "false", "data-source": source, "data-unit": found.unit,
      onclick: () => choose(String(source), String(found.unit)),
    }, text);
  }) : [data.searched.tooFew ? `too few ${data.unit}s` : "none, because the property is constant in one half of the text"])))));

// The gates.
byId("gates").hidden = data.gates.length === 0;
byId("about_gates").textContent = `A unit of a gate is left-saturated at a ${data.unit} if the gate is below ${data.left}, ` +
  `and right-saturated if the gate is above ${data.right}. The table shows the percentage of the ${data.unit}s of ` +
  `${data.searched.where} at which this happens, averaged over the units of the gate. In a plot, each dot is one unit. The x ` +
  `axis shows how often the unit is right-saturated, from 0 to 100 %, and the y axis shows how often it is left-saturated.`;
const mean = (list) => list.reduce((sum, value) => sum + value, 0) / list.length;
byId("saturation").append(
  row(["layer", "gate", "left-saturated", "right-saturated"], "th"),
  ...data.gates.map((gate) => row([String(gate.layer), gate.name, percent(mean(gate.left)), percent(mean(gate.right))])),
);
byId("scatter").append(...data.gates.map((gate) => make("div", {},
  make("h3", {}, `layer ${gate.layer}, ${gate.name}`),
  make("svg", {viewBox: "0 0 220 220", role: "img", "aria-label": `saturation of gate ${gate.name} in layer ${gate.layer}`},
    make("path", {class: "axis", d: "M20 10V200H210 M20 10L210 200"}),
    ...gate.left.map((left, unit) => make("circle", {class: "dot", r: 2.5, cx: 20 + 190 * gate.right[unit], cy: 200 - 190 * left},
      make("title", {}, `unit ${unit}: left-saturated ${percent(left)}, right-saturated ${percent(gate.right[unit])}`))),
    make("text", {x: 20, y: 214}, "right-saturated →"),
    make("text", {x: 26, y: 20}, "↑ left-saturated")))));

// The losses.
byId("totals").append(
  row(["model", "nats", "bits", "perplexity"], "th"),
  ...[["this model", data.nats], ...data.ngrams.map((each) => [`n-gram of order ${each.order}`, each.nats])].map(([name, nats]) =>
    row([name, fixed(nats, 4), fixed(bits(nats), 4), nats === null ? "" : fixed(Math.exp(nats), 3)])),
);
byId("totals").after(make("p", {class: "soft"}, `The losses are means over ${count(data.count)} scored ${data.unit}s. The ` +
  `n-grams count the ${data.unit}s of the run's train split and have Witten-Bell smoothing.` + (data.best_ngram === null ? "" :
  ` The n-gram of order ${data.best_ngram} has the lowest loss on this text, so the rest of the page shows this n-gram.`)));
byId("about_distance").textContent = `For this table, the text is cut into pieces, and the model reads each piece from the ` +
  `zero state. The distance of a prediction is the number of ${data.unit}s of the piece that the model has read before it.`;
const range = (each) => each.first === each.last ? count(each.first) : `${count(each.first)} to ${count(each.last)}`;
byId("distance").append(
  row(["distance", `scored ${data.unit}s`, "nats"], "th"),
  ...data.by_distance.map((each) => row([range(each), count(each.count), fixed(each.nats, 4)])),
);
if (data.by_distance.length > 1) {
  const most = Math.max(...data.by_distance.map((each) => each.nats)) || 1;
  const x = (index) => 40 + 560 * index / (data.by_distance.length - 1), y = (nats) => 190 - 170 * nats / most;
  const points = data.by_distance.map((each, index) => `${x(index).toFixed(1)} ${y(each.nats).toFixed(1)}`);
  byId("curve").append(make("svg", {class: "wide", viewBox: "0 0 620 220", role: "img", "aria-label": "loss by distance"},
    make("path", {class: "axis", d: "M40 10V190H610"}),
    make("path", {class: "curve", d: `M${points.join("L")}`}),
    make("text", {x: 2, y: 24}, most.toFixed(2)), make("text", {x: 2, y: 194}, "0"),
    ...data.by_distance.map((each, index) => make("text", {x: x(index) - 4, y: 208}, String(each.first)))));
}
const hasNgram = data.best_ngram !== null;
byId("symbols").append(
  row([data.unit, "count", "nats", "share of loss", ...(hasNgram ? [`nats, ${data.best_ngram}-gram`] : [])], "th"),
  ...data.by_symbol.map((each) => {
    const cells = row([label(each.id), count(each.count), fixed(each.nats, 3), percent(each.share), ...(hasNgram ? [fixed(each.ngram, 3)] : [])]);
    cells.firstChild.className = "symbol";
    return cells;
  }),
);
colour();
