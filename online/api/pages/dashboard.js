// The main page: what the worker does now, how good the lists are, and one user's list.
"use strict";
import { $, ago, ask, el, percent, say, whole } from "./common.js";
import { lineChart } from "./charts.js";
import { prepareClicks, showClicks } from "./clicks.js";
import { prepareHeader, watchHealth } from "./header.js";
import { prepareLetters, showReasons } from "./letters.js";
import { showGroup, showModel, showProblems } from "./model.js";
import { drawRequests, showRequests } from "./requests.js";
import { itemLink, showTitles, userLink } from "./titles.js";
import { marksOf, showVersions } from "./versions.js";

const SAMPLES_MAX = 300, EVERY_MS = 1_000, REQUESTS_EVERY_MS = 2_000; // samples are those since the page was opened
const GAP_MS = 180_000; // between two samples where a line is interrupted
const METHODS = { served: "the lists as served", followed: "what followed last time", popular: "what is popular" };
const samples = []; // of { at, rate, p50, p99, lag, served, followed, popular }, oldest first
let minutes = []; // the same of before the page was opened, from the worker's history
let asked = "", shown = null, marks = [], historyAsked = false;

function show(now, w, workers) {
  showProblems(now, w.problems ?? []);
  showGroup(now, w, workers);
  if (w.state === "waiting" || w.state === "starting") return;
  say("facts", `version ${w.version} · up ${ago(now - w.started_at)}`);
  say("rate", whole(w.events_per_s));
  for (const name of ["p50", "p99"]) { const ms = w.click_to_list_ms?.[name]; say(name, ms == null ? "–" : ago(ms)); }
  say("lag", whole(w.lag));
  say("waits", [w.lag && w.lag_s != null ? `the oldest for ${ago(1e3 * w.lag_s)}` : "",
    w.shedding ? "weights are not trained" : w.behind ? "more come than can be learned" : ""].filter(Boolean).join(", "));
  say("redis", w.redis === "ok" ? "Redis takes the lists" : "Redis: " + w.redis);
  say("learned", whole(w.learned)); say("known", `${whole(w.users)} users, ${whole(w.items)} items`
    + (workers.length ? `; learned from by all together: ${whole(w.learned_from)}` : ""));
  showHits(w);
  showModel(now, w);
  showReasons(w);
  sample(now, w);
  marks = marksOf(w);
  showVersions(now, w, course());
  showCharts();
}

function showHits(w) {
  const names = Object.keys(METHODS);
  const best = Math.max(1e-9, ...names.map((m) => w.recent?.[m]?.["hit@10"] ?? 0));
  for (const m of names) {
    const hit = w.recent?.[m]?.["hit@10"];
    say(m, percent(hit));
    $(m + "-bar").style.width = (100 * (hit ?? 0) / best) + "%";
  }
  say("total", `since the beginning, ${whole(w.scored)} clicks: ` + names.map((m) => percent(w.scores?.[m]?.["hit@10"])).join(" · "));
}

function sample(now, w) {
  const hits = Object.fromEntries(Object.keys(METHODS).map((m) => [m, w.recent?.[m]?.["hit@10"]]));
  samples.push({ at: now, rate: w.events_per_s, p50: w.click_to_list_ms?.p50, p99: w.click_to_list_ms?.p99, lag: w.lag, ...hits });
  if (samples.length > SAMPLES_MAX) samples.shift();
}

/** The worker's figures minute by minute, of before this page was opened; of a group, those of its leader. */
async function loadHistory(leader) {
  historyAsked = true;
  const { ok, data, error } = await ask("history.json");
  if (!ok) { say("course-about", `There is nothing of before this page was opened: ${error}`); historyAsked = false; return; }
  const of = data.workers.find((one) => one.worker === leader) ?? data.workers.find((one) => one.worker === null) ?? data.workers[0];
  minutes = (of?.minutes ?? []).map((one) => ({ ...one, rate: one.clicks_per_s }));
  say("course-about", !minutes.length ? "The worker has no figures of before this page was opened."
    : `The worker’s figures minute by minute${of.worker === null ? "" : `, those of ${of.worker}`}; since this page was opened, each second. Dashed lines: versions.`);
}

/** What the charts show: minutes, then what came since the page was opened, as far back as is chosen. */
function course() {
  const first = samples[0]?.at ?? Infinity, from = (samples.at(-1)?.at ?? 0) - 6e4 * Number($("minutes").value);
  const found = [];
  for (const one of [...minutes.filter((minute) => minute.at < first), ...samples].filter(({ at }) => at >= from)) {
    if (found.length && one.at - found.at(-1).at > GAP_MS) found.push({ at: one.at - 1 });
    found.push(one);
  }
  return found;
}

function showCharts() {
  const all = course();
  const line = (name, field, kind) => ({ name, kind, values: all.map((one) => one[field]) });
  const chart = (id, series, rest) => lineChart(id, { times: all.map((one) => one.at), series, marks, ...rest });
  const counts = { format: whole, scale: (n) => n.toLocaleString("en", { maximumSignificantDigits: 3 }), peakMin: 1 };
  chart("rate-chart", [line("clicks", "rate", "served")], { unit: "clicks per second", ...counts });
  const ms = (x) => x == null ? "–" : ago(x);
  chart("latency-chart", [line("p50", "p50", "served"), line("p99", "p99", "followed")],
    { unit: "milliseconds", format: ms, scale: counts.scale, peakMin: 1 });
  chart("lag-chart", [line("lag", "lag", "served")], { unit: "messages", ...counts });
  chart("course", Object.entries(METHODS).map(([m, name]) => line(name, m, m)),
    { unit: "% of clicks", format: percent, scale: (x) => String(Math.round(1_000 * x) / 10), peakMin: 0.01 });
}

// One user's list

async function list() {
  const user = asked;
  if (!user) return;
  const { ok, data: body, error } = await ask(`recommend/${encodeURIComponent(user)}?k=10`);
  if (user !== asked) return;
  if (!ok) { say("about", error); $("list").replaceChildren(); shown = null; return; }
  const own = body.source !== "popular";
  $("about").replaceChildren(`${own ? "their own list" : "unknown here: the popular list"}, version ${body.version}, written ${ago(body.age_ms)} ago. `,
    "All about ", userLink(user));
  if (shown?.user === user && shown.written === body.written_at) return;
  const before = shown?.user === user ? shown.items : body.items;
  $("list").replaceChildren(...body.items.map((item, n) => {
    const li = el("li", {}, itemLink(item), " ", el("span", { className: "note" }, percent(body.scores[n])));
    if (!before.includes(item)) { li.className = "new"; li.append(" ", el("span", { className: "mark" }, "new")); }
    return li;
  }));
  if (!body.items.length) $("list").replaceChildren(el("li", {}, "the list is empty"));
  shown = { user, written: body.written_at, items: body.items };
}

async function tick({ status }) {
  if (!status.ok) return;
  const { now, worker, workers } = status.data;
  if (!historyAsked) await loadHistory(worker?.group?.leader);
  if (worker) show(now, worker, workers ?? []);
  await list();
  await showClicks();
  await showTitles();
}

function look() {
  // The user id is part of the address, so that a view can be kept and shared.
  asked = shownUser();
  $("user").value = asked;
  shown = null;
  list().then(showTitles);
}
function shownUser() { try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; } }

$("ask").addEventListener("submit", (event) => { event.preventDefault(); location.hash = encodeURIComponent($("user").value); });
addEventListener("hashchange", look);
async function countRequests() {
  await showRequests();
  setTimeout(countRequests, REQUESTS_EVERY_MS);
}

function redraw() { if (samples.length) showCharts(); drawRequests(); }
addEventListener("resize", redraw);
$("minutes").addEventListener("change", redraw);
$("span").addEventListener("submit", (event) => event.preventDefault());
prepareHeader();
prepareLetters();
prepareClicks();
look();
watchHealth(tick, EVERY_MS);
countRequests();
