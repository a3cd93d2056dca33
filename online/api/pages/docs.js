// The page of the API: its description, shown by Swagger UI, which can also send requests.
"use strict";
import { $, ask, headersOfKey, say } from "./common.js";
import { prepareHeader, watchHealth } from "./header.js";

async function show() {
  const { ok, data, error } = await ask("openapi.json");
  say("asked", ok ? "" : `There is no description: ${error}`);
  if (!ok) return;
  SwaggerUIBundle({
    spec: data,
    domNode: $("routes"),
    deepLinking: false,
    validatorUrl: null, // it would be another site
    requestInterceptor: (request) => ({ ...request, headers: { ...headersOfKey(), ...request.headers } }),
  });
}

/** Swagger UI goes from headings of the first level to those of the third. */
function levelHeadings() {
  for (const heading of document.querySelectorAll("#routes :is(h3, h4, h5):not([aria-level])")) {
    heading.setAttribute("role", "heading");
    heading.setAttribute("aria-level", String(Number(heading.tagName[1]) - 1));
  }
}

new MutationObserver(levelHeadings).observe($("routes"), { childList: true, subtree: true });
prepareHeader(show);
watchHealth();
show();
