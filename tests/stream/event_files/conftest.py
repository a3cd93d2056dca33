"""What tests of files of events share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from stream.event_files import EventFile, ReadOptions, parse_columns
from stream.events import BadEvent, parse_click

#: Writes a file, reads it with options and gives each row's fields, without the event ids.
Read = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reading(content: bytes | str | Path, name: str = "a.csv", **given: Any) -> list[dict[str, Any]]:
        path = content if isinstance(content, Path) else tmp_path / name
        if not isinstance(content, Path):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if "columns" in given:
            given["columns"] = parse_columns(given["columns"])
        if "timezone" in given:
            given["timezone"] = ZoneInfo(given["timezone"])
        rows = [json.loads(message.value) for message in EventFile(path, ReadOptions(**given)).messages()]
        for row in rows:
            row.pop("event_id", None)
        return rows

    return reading


def triple(row: dict[str, Any]) -> tuple[Any, Any, Any]:
    return row.get("user_id"), row.get("item_id"), row.get("timestamp")


def are_clicks(rows: list[dict[str, Any]]) -> bool:
    return not any(isinstance(parse_click(json.dumps(row).encode()), BadEvent) for row in rows)
