// What status and readiness mean: all is well (good), something needs a look (degraded), or something is wrong (bad).
"use strict";
import { ago } from "./common.js";

const WINDOW_MS = 60_000, GROWING_AFTER_MS = 15_000; // what the latest figures are compared with
const GROWN_S = 5, GROWN_MESSAGES = 1_000; // by how much a lag has grown that does grow
const SILENT_MS = 20_000; // the worker reports about every second
const MOST = 0.5, MESSAGES_MIN = 100; // a share of the latest clicks, of so many at least
const WORDS = { checkpoint_failed: "checkpoints fail", outage: "clicks have stopped or slowed down", redis: "Redis" };
/** Problems that last and need a look, while lists go on being served well; all others are bad. */
const DEGRADED = new Set(["lagging", "shedding", "abuse_share", "abuse_flood", "evicting", "base_stale", "worker_gone"]);

const samples = []; // of { at, lag, lagS, clicks, flagged, dead }, oldest first

/**
 * Returns `{kind: "good" | "degraded" | "bad", state, why}`.
 * `status` and `ready`: answers of `ask` for status.json and readyz.
 */
export function judge(status, ready) {
  if (!status.ok) {
    const [state, ...rest] = status.error.replace(/ \(\d+\)$/, "").split(":");
    return { kind: "bad", state, why: rest.join(":").trim() };
  }
  const { now, redis, worker } = status.data;
  if (redis !== "ok") return { kind: "bad", state: redis, why: "" };
  if (!worker) return { kind: "bad", state: "no worker reports: start `nextclick worker`", why: "" };
  note(now, worker);
  const wrong = [...findings(now, worker, ready)];
  const bad = wrong.filter((one) => one.bad);
  const kind = bad.length ? "bad" : wrong.length ? "degraded" : "good";
  const why = [...new Set((bad.length ? bad : wrong).map((one) => one.text))].join("; ");
  return { kind, state: stateOf(worker), why };
}

function stateOf(w) {
  if (w.waits_for?.length) return "waiting: " + w.waits_for.join("; ");
  if (w.state !== "running") return String(w.state);
  return w.shedding ? "overloaded" : w.behind ? "learning, and behind" : w.problems?.length ? "learning, with problems" : "learning";
}

function* findings(now, w, ready) {
  const growing = lagGrows();
  if (w.waits_for?.length) yield { bad: true, text: "it can go on when that is there" };
  else if (w.state !== "running") yield { bad: false, text: `the worker is ${w.state}` };
  if (w.written_at != null && now - w.written_at > SILENT_MS) {
    yield { bad: true, text: "the worker has not reported for " + ago(1e4 * Math.floor((now - w.written_at) / 1e4)) };
  }
  const redisKnown = w.problems?.some((p) => p.kind === "redis");
  if (w.redis != null && w.redis !== "ok" && !redisKnown) yield { bad: true, text: "Redis does not take the lists" };
  if (w.unsaved_since != null) yield { bad: true, text: WORDS.checkpoint_failed };
  yield* shares(w);
  for (const problem of w.problems ?? []) {
    if (problem.kind === "waiting" || (problem.kind === "checkpoint_failed" && !problem.text)) continue;
    const who = problem.worker ? problem.worker + ", " : "";
    const name = WORDS[problem.kind] ?? String(problem.kind).replaceAll("_", " ");
    yield { bad: !DEGRADED.has(problem.kind), text: `${who}${name}${problem.text ? ": " + problem.text : ""}` };
  }
  if (growing) yield { bad: true, text: "the lag grows: more clicks come than are taken" };
  else if (w.behind || w.shedding) yield { bad: false, text: "clicks wait longer than they should" };
  if (!ready.ok) yield { bad: true, text: "not ready: " + ready.error };
  else if (ready.data.status !== "ready") {
    const seen = new Set((w.problems ?? []).map((problem) => problem.kind));
    const more = (ready.data.problems ?? []).filter((problem) => !seen.has(problem.kind));
    for (const { kind, text } of more) yield { bad: false, text: text ?? String(kind).replaceAll("_", " ") };
  }
}

/** Whether most of the latest clicks are flagged or dead letters: by the worker's own shares, and by its counters. */
function* shares(w) {
  if ((w.abuse_share ?? 0) >= MOST) yield { bad: true, text: `most of the latest clicks are flagged (${about(w.abuse_share)})` };
  for (const [topic, part] of Object.entries(w.unreadable_share_of ?? {})) {
    if (part >= MOST) yield { bad: true, text: `most of the latest messages on ${topic} become dead letters (${about(part)})` };
  }
  const first = samples[0], last = samples.at(-1);
  const dead = last.dead - first.dead, flagged = last.flagged - first.flagged, all = last.clicks - first.clicks + dead;
  const part = (dead + flagged) / all;
  if (all >= MESSAGES_MIN && part >= MOST && dead < MOST * all && (w.abuse_share ?? 0) < MOST) {
    yield { bad: true, text: `most of the latest clicks are flagged or dead letters (${about(part)})` };
  } else if (all >= MESSAGES_MIN && dead >= MOST * all && !Object.values(w.unreadable_share_of ?? {}).some((one) => one >= MOST)) {
    yield { bad: true, text: `most of the latest messages are dead letters (${about(dead / all)})` };
  }
}

/** Whether the oldest click waits longer and longer, or ever more messages wait. */
function lagGrows() {
  const first = samples[0], last = samples.at(-1);
  if (last.at - first.at < GROWING_AFTER_MS || last.lag == null || first.lag == null || last.lag <= first.lag) return false;
  const grownS = (last.lagS ?? 0) - (first.lagS ?? 0);
  return grownS >= GROWN_S || last.lag - first.lag >= Math.max(GROWN_MESSAGES, first.lag);
}

// In tens: a reason is read aloud each time its words change.
const about = (part) => `about ${10 * Math.round(10 * part)} %`;
const sum = (counts) => Object.values(counts ?? {}).reduce((all, n) => all + n, 0);

function note(now, w) {
  const dead = sum(w.dead_letters), clicks = w.learned ?? 0;
  // A worker that has started anew, or another one, counts anew.
  if (samples.length && (clicks < samples.at(-1).clicks || now < samples.at(-1).at)) samples.length = 0;
  samples.push({ at: now, lag: w.lag, lagS: w.lag_s, clicks, flagged: sum(w.flagged), dead });
  while (samples.length > 2 && now - samples[0].at > WINDOW_MS) samples.shift();
}
