"""Messages that a fuzzer guided by coverage makes (atheris, which is libFuzzer), through what reads them.

    .venv/bin/python -m pip install --constraint constraints.txt atheris
    python -m benchmarks.fuzz_guided [--runs 10000000] [--seed 1]

It begins with a few right and wrong messages and keeps what reaches a branch of stream/ that nothing has reached. What
`parse` gives must be a click, a request to forget, or a reason of the fixed set, with a detail of one short line; a
click must come back the same from what `encode` writes. What reads items, what reads others' names of fields, what
redacts, and what looks for user ids in dead letters, must not raise. Ends with a line of libFuzzer's, and with the
memory this process held after a tenth of the runs and at the end; any other result ends it with a traceback and the
message. Linux, and the Python versions that atheris has wheels for.
"""

import argparse
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: .venv/bin/python -m pip install --constraint constraints.txt atheris")

with atheris.instrument_imports(include=["stream"]):
    from benchmarks.fuzz import NOW, rss_mb
    from stream import items
    from stream.click_fields import ClickFields
    from stream.events import REASONS, BadEvent, Click, encode, parse
    from stream.redact import redacted
    from stream.user_ids import user_ids_in

SEEDS = [
    b'{"user_id": "u1", "item_id": "i1", "timestamp": 1732233600.25}',
    b'{"user_id": 7, "item_id": "i1", "timestamp": "2024-11-22T00:00:00+01:00", "event_type": "buy", "value": 2}',
    b'{"user_id": "u1", "item_id": "i1", "timestamp": 1732233600, "event_id": "e1", "x": [{"y": null}]}',
    b'{"event_type": "nextclick.forget", "user_sha256": "' + b"0f" * 32 + b'", "timestamp": 1}',
    b'{"x": {"y": "u1"}, "item_id": {"x": 7.0}, "ts": "1732233600250"}',
    b'{"item_id": "i1", "available": false, "title": "\\u00e9"}',
    b'[1e999, NaN, "\xff"]',
]
WORDS = ["user_id", "item_id", "timestamp", "event_type", "event_id", "value", "user_sha256", "nextclick.forget"]
WORDS += ["available", "null", "true", "1e400", "NaN", "-Infinity", "T00:00:00Z", "+14:00", "20261128"]
WORDS += ["\\\\ud800", "\\\\u0000"]
LONGEST = 4_096  # bytes
OTHERS = ClickFields({"user_id": "x.y", "item_id": "item_id.x", "timestamp": "ts"})


class Target:
    """What libFuzzer calls with each message."""

    def __init__(self, runs: int) -> None:
        self.runs, self.done = runs, 0
        self.rss_after_a_tenth = 0.0

    def __call__(self, value: bytes) -> None:
        self.done += 1
        if self.done == self.runs // 10:
            self.rss_after_a_tenth = rss_mb()
        check(value)
        if self.done == self.runs:  # libFuzzer ends the process without coming back
            print(f"{self.runs:,} messages; {self.rss_after_a_tenth} MB after a tenth, {rss_mb()} MB now", flush=True)


def check(value: bytes) -> None:
    """Raises AssertionError for what `parse` must not say of a message."""
    event = parse(value, now=NOW)
    if isinstance(event, BadEvent):
        assert event.reason in REASONS - {"internal-error"}, event
        assert len(event.detail) <= 300, event
        assert "\n" not in event.detail, event
    elif isinstance(event, Click):
        assert parse(encode(event), now=NOW) == event
    item = items.parse(b"i1", value)
    assert not isinstance(item, BadEvent) or "\n" not in item.detail, item
    user_ids_in(b"u1", value, "x.y")
    parse(value, now=NOW, names=OTHERS)
    assert redacted(value).isprintable(), value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, seed in enumerate(SEEDS):
            (folder / str(number)).write_bytes(seed)
        (folder / "words").write_text("".join(f'"{word}"\n' for word in WORDS))
        flags = [f"-runs={options.runs}", f"-seed={options.seed}", f"-max_len={LONGEST}", f"-dict={folder / 'words'}"]
        atheris.Setup([sys.argv[0], *flags, "-print_final_stats=1", str(folder)], Target(options.runs))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
