// Line charts over time: axes with units and ticks, a legend that names each line and its latest value.
"use strict";
import { $, el, rounded } from "./common.js";

const HEIGHT = 150, TOP = 8, RIGHT = 10, BOTTOM = 24, PER_CHARACTER = 6.6, TICKS = 4; // pixels

function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text != null) made.textContent = text;
  return made;
}

/** Steps of 1, 2 or 5 times a power of ten from 0 until `peak` is below the last. */
export function ticks(peak) {
  const rough = Math.max(peak, 1e-9) / TICKS, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * (1 - 1e-9));
  return Array.from({ length: Math.max(1, Math.ceil(peak / step - 1e-9)) + 1 }, (_, n) => n * step);
}

/** `90` → "90 s ago", `300` → "5 min ago", `10800` → "3 h ago". */
const past = (s) => s < 1 ? "now" : s < 120 ? `${Math.round(s)} s ago` : s < 7_200 ? `${Math.round(s / 60)} min ago` : `${rounded(s / 3_600)} h ago`;

/**
 * Draws lines into a `figure`: `times` in ms, the same for all; `series`: `{name, kind, values}`, where a value may be
 * null, and `kind` is a class of style.css; `format` makes texts of values; `scale` makes shorter ones for the axis,
 * whose unit is `unit`; `peakMin`: the scale goes up to here at least; `marks`: `{at, text}`, upright lines at times.
 */
export function lineChart(id, { times, series, unit, format, scale = format, peakMin = 0, marks = [] }) {
  const figure = $(id), width = Math.max(200, figure.clientWidth);
  const values = series.flatMap((one) => one.values.filter((value) => value != null));
  const said = series.map((one) => `${one.name} ${format(one.values.at(-1))}`).join(", ");
  figure.setAttribute("aria-label", values.length ? `latest: ${said}` : "no values yet");
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, "aria-hidden": "true" });
  if (values.length) draw(drawing, width, { times, series, unit, scale, marks, peak: Math.max(peakMin, ...values) });
  else drawing.append(svg("text", { x: 0, y: HEIGHT / 2, class: "tick" }, "no values yet"));
  figure.replaceChildren(drawing, legend(series, format));
}

function draw(drawing, width, { times, series, unit, scale, marks, peak }) {
  const rows = ticks(peak), highest = rows.at(-1);
  const left = 8 + PER_CHARACTER * Math.max(...rows.map((row) => scale(row).length));
  const now = times.at(-1), span = Math.max(10_000, now - times[0]);
  const x = (at) => left + (width - left - RIGHT) * (1 - (now - at) / span);
  const y = (value) => TOP + 14 + (HEIGHT - TOP - 14 - BOTTOM) * (1 - value / highest);
  drawing.append(svg("text", { x: 0, y: TOP + 2, class: "tick unit" }, unit));
  for (const row of rows) {
    drawing.append(svg("line", { x1: left, x2: width - RIGHT, y1: y(row), y2: y(row), class: "grid" }));
    drawing.append(svg("text", { x: left - 6, y: y(row) + 4, class: "tick end" }, scale(row)));
  }
  for (const [part, anchor] of [[1, "start"], [0.5, "middle"], [0, "end"]]) {
    const at = now - part * span;
    drawing.append(svg("line", { x1: x(at), x2: x(at), y1: y(0), y2: y(0) + 4, class: "grid" }));
    drawing.append(svg("text", { x: x(at), y: HEIGHT - 6, class: `tick ${anchor}` }, past(part * span / 1e3)));
  }
  for (const { at, text } of marks.filter((one) => one.at >= now - span && one.at <= now)) {
    drawing.append(svg("line", { x1: x(at), x2: x(at), y1: TOP + 12, y2: y(0), class: "published" }));
    drawing.append(svg("text", { x: x(at), y: TOP + 8, class: "tick middle" }, text));
  }
  for (const { kind, values } of series) {
    for (const run of runs(values)) {
      const points = run.map((n) => `${x(times[n]).toFixed(1)},${y(values[n]).toFixed(1)}`);
      if (run.length === 1) {
        const [cx, cy] = points[0].split(",");
        drawing.append(svg("circle", { cx, cy, r: 2, class: `dot ${kind}` }));
      } else drawing.append(svg("polyline", { points: points.join(" "), class: kind }));
    }
  }
}

/** Places of values that stand beside each other; where one is missing, the line is interrupted. */
function runs(values) {
  const found = [];
  values.forEach((value, n) => {
    if (value == null) return;
    if (n && values[n - 1] != null) found.at(-1).push(n); else found.push([n]);
  });
  return found;
}

function legend(series, format) {
  return el("figcaption", { className: "legend" }, ...series.map(({ name, kind, values }) => {
    const swatch = svg("svg", { viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true" });
    swatch.append(svg("polyline", { points: "1,4 23,4", class: kind }));
    return el("span", {}, swatch, ` ${name} `, el("b", {}, format(values.at(-1))));
  }));
}
