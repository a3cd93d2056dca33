"""The log of every process: lines to read, or one JSON object a line, with the same fields everywhere.

`extra` of a log call may have the fields in `EXTRA`; others are not written, so that nothing gets into a log by the
way. Messages are made by the same code in both forms, which has redacted what they quote (stream/redact.py).
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

TEXT, JSON = "text", "json"
#: Fields that a line has where they apply: offsets are next offsets or those of a record, `version` is the model's.
EXTRA = ("topic", "partition", "offset", "version", "duration_s", "worker")
_CHATTY = ("uvicorn", "apscheduler", "asyncio", "matplotlib")

_of_process: dict[str, Any] = {}  # fields of each line of this process


class TextFormatter(logging.Formatter):
    """`2024-11-22T12:00:00.123+00:00 INFO online.worker.loop: what happened`, tracebacks included."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(line.strip() for line in super().format(record).splitlines() if line.strip())


def set_up_logging(level: str, form: str = TEXT) -> None:
    """Logs to standard error, from `level` on (by its name), in the form `text` or `json`."""
    handler = logging.StreamHandler()
    _of_process.clear()
    _of_process["component"] = "command"
    if form == JSON:
        handler.setFormatter(_json_formatter())
        logging.captureWarnings(True)  # Python's own would be lines of another form
    else:
        handler.setFormatter(TextFormatter())
    log_to(handler, level)


def log_to(handler: logging.Handler, level: str) -> None:
    """Makes `handler` the only one, with other packages' less important lines left out."""
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It reports each attempt to connect as an error; what matters comes to us as a SourceError, in one line.
    logging.getLogger("kafka").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)


def name_log_lines(**fields: str) -> None:
    """Gives each JSON line of this process fields: its `component` (worker, api, else command), its `worker`."""
    _of_process.update(fields)


def in_json() -> bool:
    """Whether this process logs JSON, so that its last line has to be JSON too."""
    from pythonjsonlogger.core import BaseJsonFormatter  # noqa: PLC0415 - only where it is asked

    return any(isinstance(handler.formatter, BaseJsonFormatter) for handler in logging.getLogger().handlers)


def fields_in(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of a notice's figures that are fields of log lines."""
    return {name: value for name, value in figures.items() if name in EXTRA and value is not None}


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 - most processes log text

    class Lines(JsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            about = {name: log_data.get(name) for name in ("timestamp", "level", "logger")}
            about |= {"component": _of_process.get("component"), "message": log_data.get("message")}
            found = {name: log_data.get(name, _of_process.get(name)) for name in EXTRA}
            about |= {name: value for name, value in found.items() if value is not None}
            return about | ({"exception": log_data["exc_info"]} if log_data.get("exc_info") else {})

        def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
            return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    fields = ("asctime", "levelname", "name", "message")
    renamed = {"asctime": "timestamp", "levelname": "level", "name": "logger"}
    return Lines(fields, rename_fields=renamed, json_default=str, json_ensure_ascii=False)
