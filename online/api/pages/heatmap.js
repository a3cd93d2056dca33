// The heat map of a user's page: which clicks of the history point at the listed items, through remembered moments.
"use strict";
import { $, el, empty, moment, rounded, since } from "./common.js";
import { itemLink, nameOf } from "./titles.js";

const CELL = 22, LABEL = 235, NARROW = 660, COLUMNS_MAX = 50; // pixels of a column and of the rows' names; below: names stand above
const SAME_S = 0.5; // two times of one click, after rounding
const STEPS = [0, 0.25, 0.5, 0.75, 1];
const FAINTEST = 0.15; // opacity of the least weight
const ABOUT = "Each row is a listed item, each column a click of the history, from the oldest to the newest. A cell shows the weight "
  + "of remembered moments: the user’s own stand at the click that they remember, those of other users at the latest click on the "
  + "item that they came after.";
let drawn = null;

/**
 * Draws the map into `#map`, or says in words why there is none.
 * `explanations`: as POST /rank answers them, or null; `history`: newest first, or null; `why`: why one is missing;
 * `now`: the moment of viewing, in seconds since 1970.
 */
export function showMap(explanations, history, why, now) {
  drawn = null;
  if (!explanations) return empty("map", why ?? "There are no weights: no worker has explained the list.");
  if (!history) return empty("map", `There is no history to show weights over: ${why}`);
  if (!history.length) return empty("map", "This user has no history, so no click points at an item.");
  const clicks = [...history].reverse();
  const rows = explanations.map((one) => ({ item: one.item_id, cells: cellsOf(one, clicks) }));
  if (!rows.some((row) => row.cells.size)) {
    return empty("map", "The explanations have no weights: no remembered moment like the present one points at a listed item.");
  }
  drawn = { rows, clicks, now };
  return draw();
}

/** Of one explanation: by place in `clicks` (-1: none of them), what the moments there weigh and add. */
function cellsOf(one, clicks) {
  const cells = new Map();
  for (const { whose, at, after, weight, contribution } of one.moments ?? []) {
    const place = whose === "own"
      ? clicks.findLastIndex((click) => click.item_id === one.item_id && Math.abs(click.timestamp - at) <= SAME_S)
      : clicks.findLastIndex((click) => click.item_id === after);
    const cell = cells.get(place) ?? { weight: 0, contribution: 0, own: 0, world: 0 };
    cell.weight += weight;
    cell.contribution += contribution;
    cell[whose === "own" ? "own" : "world"] += 1;
    cells.set(place, cell);
  }
  return cells;
}

function draw() {
  const { rows, clicks } = drawn, width = $("map").clientWidth;
  const room = Math.floor((width - (width > NARROW ? LABEL : 0)) / CELL);
  const others = rows.some((row) => row.cells.has(-1));
  const columns = chosen(rows, clicks, Math.min(COLUMNS_MAX, Math.max(4, room - (others ? 1 : 0))));
  const peak = Math.max(...rows.flatMap((row) => [...row.cells.values()].map((cell) => cell.weight)), 1e-9);
  const shown = others ? [...columns, -1] : columns;
  const heat = el("table", { className: "heat", role: "table", "aria-labelledby": "map-title" },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" },
      el("th", { role: "columnheader", scope: "col" }, "listed item; click of the history"),
      ...shown.map((place) => el("th", { role: "columnheader", scope: "col", title: columnName(clicks, place) }, place < 0 ? "else" : String(place + 1))))),
    el("tbody", { role: "rowgroup" }, ...rows.map((row) => el("tr", { role: "row" },
      el("th", { role: "rowheader", scope: "row" }, itemLink(row.item)),
      ...shown.map((place) => cellOf(row, clicks, place, peak))))));
  heat.style.setProperty("--n", shown.length);
  const left = clicks.length - columns.length;
  const about = left ? `${columns.length} of the ${clicks.length} clicks are shown here: those with weights, and the latest. ` : "";
  const also = others ? "“else” has moments that are of no click in this history. " : "";
  $("map").replaceChildren(el("p", { className: "note" }, ABOUT), heat, scaleOf(peak),
    el("p", { className: "note", id: "reading" }, `${about}${also}Numbers are those of the history below. Point at a cell, or move to it with the Tab key, to read it.`));
}

/** Places of the clicks that fit, oldest first: those without weight, and then the oldest, are left out. */
function chosen(rows, clicks, room) {
  const weighty = new Set(rows.flatMap((row) => [...row.cells.keys()]));
  const places = [...clicks.keys()].sort((a, b) => weighty.has(b) - weighty.has(a) || b - a);
  return places.slice(0, room).sort((a, b) => a - b);
}

function columnName(clicks, place) {
  if (place < 0) return "no click of this history";
  const click = clicks[place];
  return `click ${place + 1}: ${nameOf(click.item_id)}, ${moment(click.timestamp)}`;
}

function cellOf(row, clicks, place, peak) {
  const cell = row.cells.get(place);
  if (!cell) return el("td", { role: "cell" });
  const fill = el("i");
  fill.style.opacity = FAINTEST + (1 - FAINTEST) * cell.weight / peak;
  const button = el("button", { type: "button", "aria-label": `weight ${rounded(cell.weight)}` }, fill);
  const read = () => {
    const of = [cell.own && `${cell.own} of this user`, cell.world && `${cell.world} of other users`].filter(Boolean).join(" and ");
    const when = place < 0 ? "" : `, ${since(clicks[place].timestamp, drawn.now)}`;
    const text = `${nameOf(row.item)} ← ${columnName(clicks, place)}${when}: weight ${rounded(cell.weight)}, moments: ${of}; `
      + `they add ${rounded(cell.contribution)} to the score`;
    button.title = text;
    button.setAttribute("aria-label", text);
    $("reading").textContent = text;
  };
  for (const kind of ["mouseenter", "focus", "click"]) button.addEventListener(kind, read);
  return el("td", { role: "cell" }, button);
}

function scaleOf(peak) {
  return el("p", { className: "scale note" }, "weight:", ...STEPS.map((step) => {
    const swatch = el("span");
    if (step) {
      const fill = el("i");
      fill.style.opacity = FAINTEST + (1 - FAINTEST) * step;
      fill.style.width = "100%";
      swatch.append(fill);
    }
    return el("span", {}, swatch, step ? rounded(step * peak) : "none");
  }), "(how much like the present one the moments are; those of a cell are added)");
}

addEventListener("resize", () => { if (drawn) draw(); });
