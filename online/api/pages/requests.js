// The panel of requests: how many this API answers, how fast, with which errors.
"use strict";
import { ago, ask, headedTable, rounded, say, whole } from "./common.js";
import { lineChart } from "./charts.js";

const SAMPLES_MAX = 300, WINDOW_MS = 30_000; // that a rate is the mean of
/** What these pages and machines ask again and again is not what sites ask: it is left out of the charts. */
const OUR_OWN = /^\/(pages\/.*|.*\.html|healthz|readyz|metrics|docs|openapi\.json|v1\/(status|history|requests)\.json|v1\/(dead-letters|clicks\/latest))?$/;
const totals = []; // of { at, requests, refused, failed, counts }, oldest first
const samples = []; // of { at, rate, refused, failed, p50, p99 }, oldest first

/** Asks for the counters, and shows rates of the last half minute. */
export async function showRequests() {
  const { ok, data, error } = await ask("requests.json");
  if (!ok) { say("requests-about", error); return; }
  note(data);
  const before = totals.find((one) => data.now - one.at <= WINDOW_MS) ?? totals[0], last = totals.at(-1);
  const seconds = (last.at - before.at) / 1e3, each = (name) => seconds > 0 ? (last[name] - before[name]) / seconds : null;
  const counts = last.counts.map((count, n) => count - before.counts[n]);
  samples.push({ at: data.now, rate: each("requests"), refused: each("refused"), failed: each("failed"),
    p50: quantile(counts, data.seconds, 0.5), p99: quantile(counts, data.seconds, 0.99) });
  if (samples.length > SAMPLES_MAX) samples.shift();
  drawRequests();
  const own = data.routes.filter((one) => !OUR_OWN.test(one.route));
  say("requests-about", "Without what the dashboard itself and machines that look after this API ask. " + (own.length ? "" : "Nothing else was asked yet."));
  headedTable("requests", ["route", "requests", "refused (4xx)", "failed (5xx)", "p50", "p99"], own.map((one) => [
    one.route, whole(one.requests), whole(one.refused), whole(one.failed),
    ms(quantile(one.counts, data.seconds, 0.5)), ms(quantile(one.counts, data.seconds, 0.99))]), "none yet");
}

export function drawRequests() {
  if (!samples.length) return;
  const line = (name, field, kind) => ({ name, kind, values: samples.map((one) => one[field]) });
  const chart = (id, series, rest) => lineChart(id, { times: samples.map((one) => one.at), series, scale: rounded, ...rest });
  chart("requests-chart", [line("requests", "rate", "served")], { unit: "requests per second", format: rounded, peakMin: 1 });
  chart("answers-chart", [line("p50", "p50", "served"), line("p99", "p99", "followed")], { unit: "milliseconds", format: ms, peakMin: 1 });
  chart("errors-chart", [line("refused (4xx)", "refused", "followed"), line("failed (5xx)", "failed", "served")],
    { unit: "answers per second", format: rounded, peakMin: 1 });
}

function note(data) {
  const own = data.routes.filter((one) => !OUR_OWN.test(one.route));
  const sum = (name) => own.reduce((all, one) => all + one[name], 0);
  const counts = Array.from({ length: data.seconds.length + 1 }, (_, n) => own.reduce((all, one) => all + one.counts[n], 0));
  const now = { at: data.now, requests: sum("requests"), refused: sum("refused"), failed: sum("failed"), counts };
  if (totals.length && now.requests < totals.at(-1).requests) totals.length = 0; // it has started anew
  totals.push(now);
  while (totals.length > 2 && now.at - totals[0].at > 2 * WINDOW_MS) totals.shift();
}

const ms = (x) => x == null ? "–" : x < 1 ? rounded(x) + " ms" : ago(x);

/** A quantile in milliseconds, from counts between bounds in seconds: linear between the two that it lies between. */
export function quantile(counts, bounds, q) {
  const all = counts.reduce((sum, n) => sum + n, 0);
  if (!all) return null;
  let below = 0;
  for (const [n, count] of counts.entries()) {
    if (count && below + count >= q * all) {
      const low = n ? bounds[n - 1] : 0, high = bounds[n] ?? low; // of the slowest no more is known
      return 1e3 * (low + (high - low) * (q * all - below) / count);
    }
    below += count;
  }
  return null;
}
