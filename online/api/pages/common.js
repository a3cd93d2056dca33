// What all pages share: asking the API, elements made of text, words for numbers and times.
"use strict";

export const $ = (id) => document.getElementById(id);
export const say = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };

/** An element with properties, and children that are elements or text. Data becomes text, and never markup. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value == null) continue;
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Fills a table with rows of texts or elements; `none` is what is said where there are no rows. */
export function table(id, rows, none) {
  $(id).replaceChildren(...(rows.length ? rows : [[none, ""]]).map((cells) =>
    el("tr", {}, ...cells.map((cell) => el("td", {}, cell)))));
}

/** Says one line instead of what a panel would show. */
export function empty(id, text) { $(id).replaceChildren(el("p", { className: "note" }, text)); }

// Numbers and times

export const whole = (n) => n == null ? "–" : Math.round(n).toLocaleString("en");
export const share = (x) => x == null ? "–" : x.toFixed(4);
export const percent = (x) => x == null ? "–" : (100 * x).toFixed(1) + "\u00a0%";
export const ago = (ms) => ms < 1e3 ? Math.max(0, Math.round(ms)) + " ms" : ms < 6e4 ? (ms / 1e3).toFixed(1) + " s"
  : ms < 36e5 ? Math.round(ms / 6e4) + " min" : ms < 1728e5 ? Math.round(ms / 36e5) + " h" : Math.round(ms / 864e5) + " days";

/** A moment, in seconds since 1970, as date and time here. */
export function moment(seconds) {
  const date = new Date(1e3 * seconds);
  if (Number.isNaN(date.getTime())) return "at an unknown time";
  return date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}
/** How long ago a moment was at another one, `now`; both in seconds since 1970. */
export const since = (seconds, now = Date.now() / 1e3) => {
  const ms = 1e3 * (now - seconds);
  return ms < 0 ? "later" : ago(ms) + " ago";
};
export const rounded = (x) => x == null ? "–" : Number(x.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });

// The API. The key stays in this tab, and is gone with it; it never stands in an address.

let key = keptKey();
function keptKey() { try { return sessionStorage.getItem("key") ?? ""; } catch { return ""; } }
export function useKey(text) {
  key = text.replace(/[^!-~]/g, "");
  try { sessionStorage.setItem("key", key); } catch { /* then it lasts as long as the page */ }
}

export const headersOfKey = () => (key ? { "X-API-Key": key } : {});

const UNVERSIONED = new Set(["readyz", "openapi.json"]);

/**
 * Asks the API: GET, or POST where there is a body.
 * Returns `{ok, status, data, error}`: `error` is one line for people; status 0 if no server answers. A status of 401
 * is also told to the page by the event `keywanted`, so that it shows where to enter the key.
 */
export async function ask(path, body) {
  const headers = headersOfKey();
  const options = body === undefined ? { headers }
    : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try { answer = await fetch(UNVERSIONED.has(path) ? path : "v1/" + path, options); } catch {
    return { ok: false, status: 0, data: null, error: "this page’s server does not answer" };
  }
  const { ok, status } = answer;
  if (status === 401) dispatchEvent(new Event("keywanted"));
  let data = null;
  try { data = await answer.json(); } catch { /* said below */ }
  if (ok && data !== null && typeof data === "object") return { ok, status, data, error: null };
  const why = ok ? "the answer is no JSON" : data?.detail?.startsWith("there is nothing at this path") ? "this API does not offer that"
    : data?.detail ?? "no reason was given";
  return { ok: false, status, data, error: `${why} (${status})` };
}

export const idOf = (name) => new URLSearchParams(location.search).get(name) ?? "";
