"""JSON schemas of bodies that are read more generously than they are kept: clicks and impressions (stream/)."""

from typing import Any

from online.api.questions import ID_SCHEMA, MOMENT_SCHEMA
from stream.events import EVENT_TYPE_BYTES_MAX, Click
from stream.impressions import Impression

RECORDS_MAX = 100  # of one POST /impressions

Schema = dict[str, Any]
_ID: Schema = {"anyOf": [ID_SCHEMA, {"type": "integer"}], "description": "an integer becomes its decimal text"}
_EVENT_TYPE: Schema = {"type": "string", "minLength": 1, "maxLength": EVENT_TYPE_BYTES_MAX, "format": "event-type"}
_VALUE: Schema = {"anyOf": [{"type": "number"}, {"type": "string", "format": "number"}]}


def click_schema() -> Schema:
    """Returns the JSON schema of the body of `POST /click`: what `stream.events.parse_click` takes."""
    schema = Click.model_json_schema()
    read = {"user_id": _ID, "item_id": _ID, "timestamp": MOMENT_SCHEMA}
    optional = {"event_id": _ID, "event_type": _EVENT_TYPE, "value": _VALUE}
    schema["properties"] = read | {name: _or_null(one) for name, one in optional.items()}
    return schema


def impressions_schema() -> Schema:
    """Returns the JSON schema of the body of `POST /impressions`: a record, or a list of them."""
    record = Impression.model_json_schema()
    shown = record.pop("$defs")["ShownItem"]
    shown["properties"]["item_id"] = _ID
    fields = record["properties"]
    fields["items"]["items"] = shown
    fields |= {name: _or_null(fields[name]) for name in ("version", "explored", "policy")}
    fields |= {"request_id": _or_null(_ID), "user_id": _or_null(_ID), "timestamp": MOMENT_SCHEMA}
    record["required"] = ["timestamp", "items"]
    return {"anyOf": [record, {"type": "array", "items": record, "minItems": 1, "maxItems": RECORDS_MAX}]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}
