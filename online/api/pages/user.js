// A user's page: the list ranked now with reasons, what is hidden, the history, and what of it points at the list.
"use strict";
import { $, ask, el, empty, idOf, moment, percent, say, since, whole } from "./common.js";
import { prepareHeader, watchHealth } from "./header.js";
import { showMap } from "./heatmap.js";
import { itemLink, learnTitle, nameOf, showTitles } from "./titles.js";

const LISTED = 10, AGAIN_MS = 400, AGAIN_MAX = 8; // until a worker has answered, or has read what was hidden
const SOURCES = {
  stored: "No worker answered in time: this is the stored list, without reasons.",
  popular: "No worker answered in time, and there is no list of this user: this is the popular list.",
};
const id = idOf("id");
let turn = 0; // which series of questions is the latest
const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });

/** Asks for the list and the history until a worker answers in time. */
async function refreshNow() {
  say("asked", "asking …");
  const answered = await refreshUntil((ranked) => ranked === null || ranked.source === "asked");
  if (answered === false) $("asked").append(" Ask again in a moment.");
}

/** Asks for the list and the history, and shows both. Returns what was ranked; null where nothing was. */
async function refresh() {
  const question = { user_id: id, k: LISTED, explain: true };
  const [ranked, user] = await Promise.all([ask("rank", question), ask("users/" + encodeURIComponent(id))]);
  for (const one of ranked.data?.explanations ?? []) learnTitle(one.item_id, one.title);
  showList(ranked);
  const now = ranked.data?.at; // of replayed clicks it is long ago
  showHistory(user, now);
  showHidden(user);
  const explanations = ranked.ok ? ranked.data.explanations : null;
  const why = !ranked.ok ? `There are no weights: ${ranked.error}`
    : !explanations ? "There are no weights: no worker has explained the list." : user.error;
  showMap(explanations, user.ok ? user.data.history ?? [] : null, why, now);
  await showTitles();
  return ranked.ok ? ranked.data : null;
}

function showList({ ok, data, error }) {
  if (!ok) { say("asked", `There is no list: ${error}`); $("list").replaceChildren(); return; }
  const known = data.known ? "" : " Nothing is known of this user, so it is a visitor’s list.";
  say("asked", (SOURCES[data.source] ?? `Version ${data.version}, for ${moment(data.at)}.`) + known);
  const reasonsOf = new Map((data.explanations ?? []).map((one) => [one.item_id, one.reasons ?? []]));
  $("list").replaceChildren(...data.items.map((item, n) => el("li", {},
    el("span", { className: "rank" }, String(n + 1)),
    el("span", {}, itemLink(item), " ", el("span", { className: "note" }, percent(data.scores[n]))),
    button("Hide", item, hide),
    el("ul", {}, ...words(reasonsOf.get(item), data.explanations)))));
  if (!data.items.length) $("list").replaceChildren(el("li", { className: "note" }, "The list is empty."));
}

function words(reasons, explanations) {
  if (reasons?.length) return reasons.map((one) => el("li", {}, one.text));
  return explanations ? [el("li", {}, "nothing stands out that speaks for it")] : [];
}

function showHistory({ ok, data, error }, now) {
  const history = ok ? data.history ?? [] : [];
  say("known", !ok ? `There is no history: ${error}` : !data.known ? "Nothing is known of this user."
    : !history.length ? "This user has no history." : `${whole(data.clicks)} clicks in all; the latest ${history.length} are shown.`);
  $("history").reversed = true;
  $("history").start = history.length;
  $("history").replaceChildren(...history.map((one) => el("li", {}, itemLink(one.item_id), " ",
    el("span", { className: "note" }, `${one.event_type ?? "click"}, ${since(one.timestamp, now)} `,
      el("time", { dateTime: stamp(one.timestamp) }, `(${moment(one.timestamp)})`)))));
}
function stamp(seconds) { try { return new Date(1e3 * seconds).toISOString(); } catch { return null; } }

function showHidden({ ok, data, error }) {
  if (!ok) { empty("hidden", `What is hidden is not known: ${error}`); return; }
  if (!data.hidden?.length) { empty("hidden", "Nothing is hidden."); return; }
  $("hidden").replaceChildren(el("ul", { className: "unmarked" }, ...data.hidden.map((one) => el("li", {}, el("span", { className: "pair" },
    el("span", {}, itemLink(one.item_id), " ", el("span", { className: "note" }, one.until == null ? "for good" : `until ${moment(one.until)}`)),
    button("Show again", one.item_id, unhide))))));
}

// What changes something

function button(text, item, act) {
  const made = el("button", { type: "button", className: "quiet", "aria-label": `${text}: ${nameOf(item)}` }, text);
  made.addEventListener("click", async () => {
    made.disabled = true;
    await act(item);
    made.disabled = false;
  });
  return made;
}

async function hide(item) {
  const { ok, status, error } = await ask("hide", { user_id: id, item_id: item, for_s: null });
  if (!ok) { say("asked", `${nameOf(item)} is not hidden: ${error}${status === 401 ? ". Enter the key above, and hide it again." : ""}`); return; }
  say("asked", `${nameOf(item)} was hidden; asking again …`);
  const gone = await refreshUntil((ranked) => ranked !== null && !ranked.items.includes(item));
  if (gone === null) return;
  say("asked", gone ? `${nameOf(item)} was hidden. The list was ranked again without it.`
    : `${nameOf(item)} was hidden, but no worker has read it yet: ask again in a moment.`);
  $("again").focus();
}

async function unhide(item) {
  const { ok, error } = await ask("unhide", { user_id: id, item_id: item });
  if (!ok) { say("asked", `${nameOf(item)} is still hidden: ${error}`); return; }
  await pause(AGAIN_MS);
  await refresh();
  say("asked", `${nameOf(item)} may be listed again.`);
  $("again").focus();
}

/** Asks until what was ranked is `enough`: whether it was. Null where the page has begun to ask for something else. */
async function refreshUntil(enough) {
  const mine = ++turn;
  for (let n = 0; n < AGAIN_MAX; n++) {
    const ranked = await refresh();
    if (mine !== turn) return null;
    if (enough(ranked)) return true;
    await pause(AGAIN_MS);
    if (mine !== turn) return null;
  }
  return false;
}

// Start

say("name", id);
document.title = `${id || "User"} · nextclick`;
prepareHeader(() => id && refreshNow());
$("again").addEventListener("click", refreshNow);
$("again").hidden = !id;
if (id) refreshNow();
else {
  say("asked", "Find a user with the form above.");
  empty("map", "No user is named.");
  empty("hidden", "No user is named.");
}
watchHealth();
