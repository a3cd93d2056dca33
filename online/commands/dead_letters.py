"""`nextclick dead-letters`: counts, lists, and sends round again."""

import json
import re
import time
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path

from rich.console import Console

from online.commands.redrive import SENT_ALREADY, Redriven, Wanted, read_repaired, reader_of, redrive
from online.commands.views import dead_letters_view, reasons_line
from online.config.settings import Settings
from online.worker.connections import open_producer, open_reader
from stream.dead_letters import DeadLetter, letters_in
from stream.readable import first_bytes

_NAMED = 3  # letters in a line
_UNITS_S = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}


class LettersError(Exception):
    """What was asked for cannot be shown; one line."""


def since_ms(text: str, now: float) -> int:
    """`2h`, `30min`, `3d`, or a time in ISO 8601 with an offset -> milliseconds since 1970. Raises LettersError."""
    if match := re.fullmatch(r"(\d{1,9})(s|min|h|d)", text):
        return int(1_000 * (now - int(match[1]) * _UNITS_S[match[2]]))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise LettersError(
            f"--since {text}: give a span (30min, 2h, 3d) or a time with its offset, as 2024-11-22T12:00+00:00"
        )
    return int(1_000 * moment.timestamp())


def run_dead_letters(
    out: Console,
    settings: Settings,
    *,
    reason: str | None,
    topic: str | None,
    since: str | None,
    limit: int,
    as_json: bool,
    send: bool,
    repaired: Path | None,
    again: bool,
    dry_run: bool,
) -> None:
    """Shows the letters that are wanted; with `send`, sends them round again and says what came of it.

    Raises LettersError, RedriveError, SourceError.
    """
    wanted = Wanted(reason, topic, None if since is None else since_ms(since, time.time()))
    with closing(open_reader(settings, settings.dead_letters_topic)) as reader:
        everything, marked = letters_in(reader.read())
    letters = [letter for letter in everything if wanted(letter)]
    if send:
        values = None if repaired is None else read_repaired(repaired)
        with closing(open_producer(settings)) as producer:
            done = redrive(
                letters,
                marked,
                producer,
                settings.dead_letters_topic,
                check=reader_of(
                    settings.clicks_topic,
                    settings.items_topic,
                    settings.limits,
                    settings.click_names,
                    settings.feedback_topic,
                    users_topic=settings.users_topic,
                ),
                repaired=values,
                again=again,
                dry_run=dry_run,
            )
        _say_redriven(out, done, as_json=as_json, dry_run=dry_run)
        if repaired is not None:
            _all_sent(repaired, done)
        return
    _show(out, letters, marked, wanted, limit=limit, as_json=as_json)


def _all_sent(repaired: Path, done: Redriven) -> None:
    """Raises LettersError where one that was named was not sent, and has not been before."""
    if done.missing:
        named = ", ".join(f"{topic} partition {number} offset {at}" for topic, number, at in done.missing[:_NAMED])
        more = f" and {len(done.missing) - _NAMED:,} more" if len(done.missing) > _NAMED else ""
        raise LettersError(f"{repaired}: there is no such dead letter as {named}{more}")
    if why := {reason: count for reason, count in done.stay.items() if reason != SENT_ALREADY}:
        raise LettersError(f"{repaired}: not sent: {reasons_line(why)}")


def _say_redriven(out: Console, done: Redriven, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print(json.dumps(done.as_dict(), indent=2))
        return
    out.print(f"{done.sent:,} {'would be' if dry_run else 'were'} sent round again", markup=False)
    if done.stay:
        out.print(f"as they were: {reasons_line(done.stay)}", markup=False)


def _show(
    out: Console,
    letters: list[DeadLetter],
    marked: set[tuple[str, int, int]],
    wanted: Wanted,
    *,
    limit: int,
    as_json: bool,
) -> None:
    reasons = Counter(letter.reason for letter in letters)
    redriven = sum(letter.place in marked for letter in letters)
    latest = letters[len(letters) - limit :] if limit < len(letters) else letters
    if as_json:
        places = [
            {
                "topic": letter.topic, "partition": letter.partition, "offset": letter.offset, "reason": letter.reason,
                "detail": letter.detail, "begins_with": first_bytes(letter.record.value),
                "redriven": letter.place in marked,
            }
            for letter in latest
        ]  # fmt: skip
        shown = {"total": reasons.total(), "reasons": dict(reasons), "redriven": redriven, "latest": places}
        print(json.dumps(shown, indent=2))
    elif not reasons:
        with_reason = "" if wanted.reason is None else f" with reason {wanted.reason}"
        out.print(f"there are no dead letters{with_reason}", markup=False)
    else:
        out.print(dead_letters_view(reasons, latest, marked))
