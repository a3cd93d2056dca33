// The panel of dead letters: counts by reason, and the latest messages of one reason as they begin.
"use strict";
import { $, ago, ask, el, headedTable, say, whole } from "./common.js";

const LIMIT = 20;

/** The reasons that the worker has counted are what can be chosen. */
export function showReasons(w) {
  const counted = Object.entries(w.dead_letters ?? {}).filter(([, n]) => n).sort((a, b) => b[1] - a[1]);
  const wanted = [["", "all"], ...counted.map(([reason, n]) => [reason, `${reason} (${whole(n)})`])];
  const select = $("reason"), chosen = select.value;
  if (JSON.stringify(wanted) === select.dataset.shown) return;
  select.dataset.shown = JSON.stringify(wanted);
  select.replaceChildren(...wanted.map(([value, text]) => el("option", { value }, text)));
  select.value = counted.some(([reason]) => reason === chosen) ? chosen : "";
  if (!$("letters").rows.length) say("letters-about", counted.length ? `${whole(counted.reduce((sum, [, n]) => sum + n, 0))} counted by the worker.` : "none");
}

async function showLetters() {
  const reason = $("reason").value;
  say("letters-about", "asking …");
  const { ok, data, error } = await ask(`dead-letters?limit=${LIMIT}${reason ? "&reason=" + encodeURIComponent(reason) : ""}`);
  if (!ok) { say("letters-about", `They cannot be shown: ${error}`); $("letters").replaceChildren(); return; }
  const counts = Object.entries(data.reasons).map(([name, n]) => `${name} ${whole(n)}`).join(", ");
  say("letters-about", data.looked_at ? `The latest ${whole(data.looked_at)} were looked at: ${counts}.` : "There are no dead letters.");
  headedTable("letters", ["put aside", "reason", "what is wrong", "where it stood", "how it begins", "sent again"], data.latest.map((one) => [
    one.at > 0 ? `${ago(Date.now() - one.at)} ago` : "–", one.reason, one.detail, `${one.topic}, partition ${one.partition}, offset ${one.offset}`,
    el("code", {}, one.begins_with), one.redriven ? "yes" : "no"]), "none of this reason");
}

export function prepareLetters() {
  $("letters-form").addEventListener("submit", (event) => { event.preventDefault(); showLetters(); });
}
