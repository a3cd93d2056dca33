// The header of every page: health, the search box, and where the API's key is entered.
"use strict";
import { $, ask, idOf, say, useKey } from "./common.js";
import { judge } from "./health.js";

const EVERY_MS = 5_000;
let shown = () => {};

/** Shows a verdict of health.js: colour, state and reason. The region is announced only when its words change. */
function showHealth({ kind, state, why }) {
  say("state", state);
  say("why", why);
  if ($("health").className !== kind) $("health").className = kind;
}

/** Asks for status and readiness, and shows what they mean: first in the header, then by what `watchHealth` was given. */
async function checkHealth() {
  const [status, ready] = await Promise.all([ask("status.json"), ask("readyz")]);
  $("login").hidden = status.status !== 401;
  try {
    showHealth(judge(status, ready));
    await shown({ status, ready });
  } catch (error) {
    showHealth({ kind: "bad", state: "this page cannot show the status", why: String(error) });
  }
}

/** Checks again and again, and calls `show(answers)` each time. */
export async function watchHealth(show = shown, everyMs = EVERY_MS) {
  shown = show;
  await checkHealth();
  setTimeout(watchHealth, everyMs, show, everyMs);
}

/** Prepares search and login. `entered` is called when a key was entered. */
export function prepareHeader(entered = () => {}) {
  addEventListener("keywanted", () => { $("login").hidden = false; });
  $("login").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey($("key").value);
    $("key").value = "";
    $("login").hidden = true;
    checkHealth().then(entered);
  });
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const id = $("sought").value;
    if (id) location.href = `${$("kind").value}.html?id=${encodeURIComponent(id)}`;
  });
  if (location.pathname.endsWith("item.html")) $("kind").value = "item";
  if (idOf("id")) $("sought").value = idOf("id");
}
