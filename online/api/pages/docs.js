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

prepareHeader(show);
watchHealth();
show();
