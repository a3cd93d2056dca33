// An item's page: what the catalogue says of it, which items are like it, and in whose lists it stands.
"use strict";
import { $, ask, el, empty, idOf, rounded, say, whole } from "./common.js";
import { prepareHeader, watchHealth } from "./header.js";
import { itemLink, learnTitle, showTitles, userLink } from "./titles.js";

const WAYS = { follows: "No clicks followed it yet.", near: "Nothing is clicked near it yet.", content: "Nothing is known to be alike." };
const SIMILAR = 10, PANELS = ["facts-of-item", "lists", ...Object.keys(WAYS)];
const id = idOf("id"), path = encodeURIComponent(id);

async function refresh() {
  await Promise.all([showFacts(), showLists(), ...Object.keys(WAYS).map(showSimilar)]);
  await showTitles();
}

async function showFacts() {
  const { ok, data, error } = await ask("items/" + path);
  if (!ok) { empty("facts-of-item", error); return; }
  learnTitle(id, data.title);
  if (data.title) {
    $("name").replaceChildren(`${data.title} `, el("span", { className: "id" }, `(${id})`));
    document.title = `${data.title} · nextclick`;
  }
  const tags = data.tags?.length ? el("ul", { className: "tags" }, ...data.tags.map((tag) => el("li", {}, tag))) : "none";
  const pairs = [
    ["title", data.title || "none"],
    ["tags", tags],
    ["availability", data.available ? el("span", { className: "there" }, "available")
      : el("span", { className: "away" }, "not available: no list shows it")],
    ...Object.entries(data.attributes ?? {}).map(([name, value]) => [name, String(value)]),
  ];
  $("facts-of-item").replaceChildren(el("dl", {}, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
}

async function showLists() {
  const { ok, data, error } = await ask(`items/${path}/lists`);
  if (!ok) { empty("lists", error); return; }
  const looked = `${whole(data.looked_at)} ${data.looked_at === 1 ? "list" : "lists"} looked at in Redis`;
  if (!data.lists) { empty("lists", data.looked_at ? `In none of ${looked}.` : "There are no lists in Redis."); return; }
  const users = data.users ?? [];
  const more = users.length < data.lists ? ` The first ${users.length} users:` : "";
  $("lists").replaceChildren(el("p", { className: "note" }, `In ${whole(data.lists)} of ${looked}.${more}`),
    el("ul", { className: "users" }, ...users.map((one) => el("li", {}, userLink(one.user_id), " ", el("span", { className: "note" }, `rank ${one.rank}`)))));
}

async function showSimilar(by) {
  const { ok, data, error } = await ask(`similar/${path}?by=${by}&k=${SIMILAR}`);
  if (!ok) { empty(by, error); return; }
  if (data.source !== "asked") { empty(by, "No worker answered in time, so similar items are not known."); return; }
  if (!data.items.length) { empty(by, WAYS[by]); return; }
  $(by).replaceChildren(el("ol", { className: "plain" }, ...data.items.map((item, n) =>
    el("li", {}, itemLink(item), " ", el("span", { className: "note", title: "score" }, rounded(data.scores[n]))))));
}

say("name", id);
document.title = `${id || "Item"} · nextclick`;
prepareHeader(() => id && refresh());
if (id) refresh();
else for (const panel of PANELS) empty(panel, "No item is named: find one with the form above.");
watchHealth();
