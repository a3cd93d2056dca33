// The panel of versions: what each was made of, what the gate saw, and how the lists did before and after it.
"use strict";
import { ago, headedTable, percent, say, share, whole } from "./common.js";

const SHOWN = 8, AROUND_MS = 600_000; // what is compared before and after a publication

/** The versions of a status that were published, as marks of charts: `{at, text}`. */
export const marksOf = (w) => (w.versions ?? []).filter((one) => one.parent != null)
  .map((one) => ({ at: one.at_ms, text: `v${one.number}` }));

/** `samples`: of the charts, of `{at, served}`, oldest first. */
export function showVersions(now, w, samples) {
  const gate = w.gate;
  say("gate", gate ? `A candidate is compared with the live version: ${seen(gate)}.` : "No candidate is compared with the live version now.");
  const rows = (w.versions ?? []).slice(-SHOWN).reverse().map((one) => [
    String(one.number), one.state, `${ago(now - one.at_ms)} ago`, one.parent == null ? "–" : String(one.parent), one.why,
    whole(one.learned), one.figures?.clicks == null ? "–" : seen(one.figures),
    `${percent(around(samples, one.at_ms - AROUND_MS, one.at_ms))} → ${percent(around(samples, one.at_ms, one.at_ms + AROUND_MS))}`]);
  headedTable("versions", ["version", "state", "published", "from", "why", "clicks learned", "what the gate saw",
    "hit@10, 10 minutes before → after"], rows, "none");
}

/** What the gate has measured: both mean scores, their difference, after so many clicks. */
function seen({ clicks, live, candidate, difference, interval, decision }) {
  const signed = (x) => (x > 0 ? "+" : "") + x.toFixed(4);
  const by = difference == null ? "" : `, difference ${signed(difference)}`;
  const within = interval?.every((x) => x != null) ? ` (${interval.map(signed).join(" to ")})` : "";
  return `${share(candidate)} against ${share(live)}${by}${within}, ${whole(clicks)} clicks${decision ? `: ${decision}` : ""}`;
}

/** The mean share of hits from one time to another; null where there are no samples. */
function around(samples, from, to) {
  const values = samples.filter((one) => one.at > from && one.at <= to && one.served != null).map((one) => one.served);
  return values.length ? values.reduce((sum, x) => sum + x, 0) / values.length : null;
}
