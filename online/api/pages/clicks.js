// The panel of the latest clicks: who clicked on what, and where it stood in the list before. It can be held still.
"use strict";
import { $, ask, el, headedTable, moment, say } from "./common.js";
import { itemLink, userLink } from "./titles.js";

const HEADINGS = ["time", "user", "item", "event", "in the list before"];
const PAUSING = { pointerenter: ["pointer", true], pointerleave: ["pointer", false], focusin: ["focus", true], focusout: ["focus", false] };
const paused = { button: false, pointer: false, focus: false };
let shown = "";

const still = () => paused.button || paused.pointer || paused.focus;

/** Asks for the latest clicks and shows them, but while they are held still or the page is hidden. */
export async function showClicks() {
  if (still() || document.hidden) return;
  const { ok, data, error } = await ask("clicks/latest");
  if (still()) return;
  if (!ok) { say("clicks-about", error); return; }
  tell(data);
  if (shown === JSON.stringify(data.clicks)) return; // so that nothing that is selected changes without need
  shown = JSON.stringify(data.clicks);
  headedTable("clicks", HEADINGS, data.clicks.map((one) => [
    el("time", { title: moment(one.at / 1e3) }, clock(one.at, data.now)), userLink(one.user_id), itemLink(one.item_id), one.event_type,
    place(one.rank, data.ranks)]), "none yet");
}

const place = (rank, ranks) => rank == null ? "not looked up" : rank ? el("b", { className: "there" }, `place ${rank}`) : `not in its first ${ranks}`;

/** The time of day; of another day also the date. */
function clock(at, now) {
  const date = new Date(at), sameDay = date.toDateString() === new Date(now).toDateString();
  return sameDay ? date.toLocaleTimeString("en-GB") : moment(at / 1e3);
}

function tell({ shown: told, clicks }) {
  say("clicks-about", !told ? "No worker tells its clicks: none runs, or NEXTCLICK_CLICKS_SHOWN is 0."
    : `Each second, the latest ${clicks.length}; they stand still while you point at them.`);
}

function hold(reason, on) {
  paused[reason] = on;
  if (still()) say("clicks-about", "They stand still.");
}

export function prepareClicks() {
  const button = $("clicks-pause"), area = $("clicks-area");
  button.addEventListener("click", () => {
    hold("button", !paused.button);
    button.setAttribute("aria-pressed", String(paused.button));
  });
  for (const [event, [reason, on]] of Object.entries(PAUSING)) area.addEventListener(event, () => hold(reason, on));
}
