"""What /openapi.json says beyond what the routes say themselves: keys, and the errors that any route may answer."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from online.api.middleware import HEALTH
from online.api.problems import Problem, problem_responses
from online.config.settings import Settings

TITLE = "nextclick"
TEXT = """Recommendations that learn click by click.

Every error is a problem (RFC 9457), `application/problem+json`, of the shape `Problem`. What is at `/v1/…` is also at
the paths without `/v1`, as it was before there were versions: those stay.

Formats of text: an `id` has 1 to 256 bytes as UTF-8; a `filter` is an expression of docs/filters.md."""
#: Answered before a route is looked at, or in its stead.
_OF_ALL = (400, 408, 500, 503)
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "a key of `nextclick api-key NAME`"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same key"},
}


def add_description(app: FastAPI, settings: Settings) -> None:
    """Makes the app describe its routes, once all of them are added."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _description(app, settings)
        return dict(app.openapi_schema)

    app.openapi = described  # type: ignore[method-assign]


def _description(app: FastAPI, settings: Settings) -> dict[str, Any]:
    spec = get_openapi(title=TITLE, version=app.version, description=TEXT, routes=app.routes)
    spec["paths"] = {path.replace(":text}", "}"): methods for path, methods in spec["paths"].items()}
    components = spec.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
    if settings.api_keys:
        components["securitySchemes"] = _SCHEMES
    for path, operation in _operations(spec):
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _never_null(parameter["schema"])
        answers = operation["responses"]
        statuses = [*_OF_ALL]
        if path not in HEALTH:
            statuses += [401] if settings.api_keys else []
            statuses += [429] if settings.api_requests_per_s is not None else []
            if settings.api_keys:
                operation["security"] = [{name: []} for name in _SCHEMES]
        answers |= {str(status): answer for status, answer in problem_responses(*statuses).items()}
        operation["responses"] = dict(sorted(answers.items()))
    return spec


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is given or left out; null is for bodies."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **kinds[0]}


def _operations(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in spec["paths"].items():
        for operation in methods.values():
            yield path, operation
