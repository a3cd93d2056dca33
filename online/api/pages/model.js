// Panels about the model and the workers: tables of what a status says.
"use strict";
import { $, ago, el, say, share, table, whole } from "./common.js";

const LABELS = [...document.querySelectorAll(".workers th")].map((th) => th.textContent);

/** `[0, 1, 2, 5]` → "0-2, 5". */
function ranges(numbers) {
  const parts = [];
  for (const n of [...numbers].sort((a, b) => a - b)) {
    const last = parts.at(-1);
    if (last && n === last[1] + 1) last[1] = n; else parts.push([n, n]);
  }
  return parts.map(([a, b]) => a === b ? a : a + "-" + b).join(", ") || "none";
}

/** A group of workers, and who owns what in it. */
export function showGroup(now, w, workers) {
  const many = workers.length > 0;
  $("group").hidden = !many;
  say("rate-title", many ? "Clicks counted per second" : "Clicks learned per second");
  say("learned-title", many ? "Counted by each worker" : "Learned");
  if (!many) return;
  const g = w.group ?? {};
  say("group-title", `Workers: ${g.reporting} report${g.gone ? `, ${g.gone} gone` : ""}; ${g.leader ? g.leader + " leads" : "no leader"}`);
  $("workers").replaceChildren(...workers.map((one) => {
    const gone = one.state === "gone";
    const cells = gone ? [one.name, `gone, reported ${ago(now - one.written_at)} ago`] : [
      one.name, one.leads ? one.state + ", leads" : one.state, ranges(one.owned),
      one.lag == null ? "–" : whole(one.lag) + (one.lag && one.lag_s ? ` (${ago(1e3 * one.lag_s)})` : ""),
      whole(one.learned), whole(one.learned_from), whole(one.base), one.round_age_s == null ? "–" : ago(1e3 * one.round_age_s),
      whole(one.version)];
    return el("tr", { className: gone ? "gone" : one.leads ? "leads" : "" }, ...cells.map((text, n) => {
      const td = el("td", { "data-label": LABELS[n] }, String(text));
      if (gone && n === 1) td.colSpan = LABELS.length - 1;
      return td;
    }));
  }));
}

export function showProblems(now, problems) {
  $("wrong").hidden = !problems.length;
  table("problems", problems.map((p) => [
    p.since == null ? "now" : "for " + ago(now - p.since), p.kind.replaceAll("_", " "), p.worker ? `${p.worker}: ${p.text}` : p.text]), "");
}

export function showModel(now, w) {
  const alarm = w.last_alarm, tune = w.finetune, saved = w.checkpoint, gate = w.gate;
  table("model", [
    ["drift alarms", whole(w.alarms)],
    ["drift for the better", whole(w.improvements)],
    ...(alarm ? [[`last alarm: the ${alarm.signal ?? "loss"}`, `${alarm.before.toFixed(2)} → ${alarm.after.toFixed(2)}`]] : []),
    ["fine-tunings", `${whole(tune?.done)}${!tune || tune.state === "idle" ? "" : ", " + tune.state}`],
    ...(gate ? [["candidate, and the live model beside it", `${share(gate.candidate)}, ${share(gate.live)} (${whole(gate.clicks)} clicks)`]] : []),
    ["loss, lately", w.loss == null ? "–" : w.loss.toFixed(3)],
    ["checkpoint", saved ? `${whole(saved.number)} (${(saved.bytes / 1e6).toFixed(1)} MB)` : "none yet"],
    ...(w.lost ? [["messages gone before they were read", whole(w.lost)]] : []),
    ["clicks delivered again, left out", whole(w.duplicates)],
    ...Object.entries(w.flagged ?? {}).filter(([, n]) => n).map(([r, n]) => [`clicks kept from other users’ lists: ${r}`, whole(n)]),
    ...(w.untrained ? [["clicks that weights were not trained on", whole(w.untrained)]] : []),
    ["lists refreshed without a click", whole(w.refreshes)],
    ["memory, at most", whole(w.memory_mb_max) + " MB"],
  ]);
  table("notices", (w.notices ?? []).slice(-10).reverse().map((n) => [ago(now - n.at) + " ago", n.kind.replaceAll("_", " "), n.text]), "nothing yet");
}
