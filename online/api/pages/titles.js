// Links to the pages of items and users, with titles of items beside their ids.
"use strict";
import { ask, el } from "./common.js";

const IDS_MAX = 500, CHARACTERS_MAX = 6_000, HELD_MAX = 5_000; // of one question; kept
const AGAIN_MS = 60_000; // until an item without a title is asked for again
const known = new Map(); // id → { title, at }
let offered = true;

export const userLink = (id) => el("a", { href: "user.html?id=" + encodeURIComponent(id) }, id);

/** A link to an item: its id, and its title once `showTitles` has found one. */
export function itemLink(id) {
  const link = el("a", { href: "item.html?id=" + encodeURIComponent(id), className: "item" }, id);
  link.dataset.item = id;
  name(link);
  return link;
}

export const titleOf = (id) => known.get(id)?.title ?? null;
/** The title with the id behind it; the id alone where there is no title. */
export const nameOf = (id) => titleOf(id) == null ? id : `${titleOf(id)} (${id})`;
export function learnTitle(id, title) { if (title != null && title !== "") known.set(id, { title, at: Date.now() }); }

function name(link) {
  const id = link.dataset.item, title = titleOf(id);
  if (title == null || link.dataset.title === title) return;
  link.dataset.title = title;
  link.replaceChildren(el("span", { className: "title" }, title), " ", el("span", { className: "id" }, `(${id})`));
}

/** Asks for the titles of all items that the page shows, at once, and shows them. */
export async function showTitles() {
  const links = () => document.querySelectorAll("a[data-item]");
  const wanted = [...new Set([...links()].map((link) => link.dataset.item))].filter(due);
  if (offered) for (const ids of portions(wanted)) await load(ids);
  links().forEach(name);
}

const due = (id) => !known.has(id) || (known.get(id).title == null && Date.now() - known.get(id).at > AGAIN_MS);

async function load(ids) {
  const answer = await ask("titles?" + ids.map((id) => "id=" + encodeURIComponent(id)).join("&"));
  if (answer.status === 404 || answer.status === 405) offered = false; // this API has no such route
  if (!answer.ok) return;
  if (known.size > HELD_MAX) known.clear();
  const titles = answer.data.titles ?? {};
  for (const id of ids) known.set(id, { title: Object.hasOwn(titles, id) ? titles[id] : null, at: Date.now() });
}

/** Ids in portions that one question may hold: one portion, but for very many or very long ids. */
function portions(ids) {
  const found = [];
  let length = Infinity;
  for (const id of ids) {
    const more = encodeURIComponent(id).length + 4;
    if (length + more > CHARACTERS_MAX || found.at(-1).length >= IDS_MAX) { found.push([]); length = 0; }
    found.at(-1).push(id);
    length += more;
  }
  return found;
}
