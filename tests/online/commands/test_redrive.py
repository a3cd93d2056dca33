"""Letters are sent round again once, those that can be read; and a crash in between costs one duplicate at most."""

import json
from functools import partial

import pytest

import online.cli
from online.commands.dead_letters import LettersError, since_ms
from online.commands.redrive import RedriveError, Wanted, read_repaired, reader_of, redrive
from stream.click_fields import ClickFields
from stream.dead_letters import DeadLetters, letters_in
from stream.events import BadEvent, Limits
from stream.log import LogProducer
from stream.readers import LogReader
from stream.source import Record, SourceError

GOOD = b'{"user_id": "u1", "item_id": "i1", "timestamp": 1700000000, "event_id": "e1"}'
CHECK = reader_of("clicks", "items", Limits())


class Letters:
    """A log with dead letters on it."""

    def __init__(self, path):
        self.path = path
        self.producer = LogProducer(path)

    def put(self, offset, value, reason="internal-error", topic="clicks", headers=()):
        record = Record(topic, 0, offset, 0, b"u1", value, headers)
        DeadLetters(self.producer, "clicks.dead").put(record, BadEvent(reason, "why"))
        self.producer.flush()

    def on(self, topic):
        return list(LogReader(self.path, topic).read())

    def redrive(self, wanted=None, **options):
        letters, marked = letters_in(self.on("clicks.dead"))
        letters = [letter for letter in letters if wanted is None or wanted(letter)]
        return redrive(letters, marked, self.producer, "clicks.dead", check=CHECK, **options)


@pytest.fixture
def letters(tmp_path):
    return Letters(tmp_path / "data" / "log.db")


def test_what_can_be_read_is_sent_once_and_what_cannot_stays(letters):
    letters.put(3, GOOD)
    letters.put(4, b"{", "malformed-json")
    letters.put(5, GOOD, topic="another")
    done = letters.redrive()
    assert (done.sent, dict(done.stay)) == (1, {"malformed-json": 1, "of no topic that is read": 1})
    (sent,) = letters.on("clicks")
    assert (sent.key, sent.value, sent.headers) == (b"u1", GOOD, (("redriven-from", b"clicks:0:3"),))
    done = letters.redrive()
    assert (done.sent, done.stay["sent again already"]) == (0, 1)
    assert len(letters.on("clicks")) == 1


def test_what_a_mapping_of_fields_makes_readable_is_sent(letters):
    theirs = b'{"userId": "u1", "item_id": "i1", "timestamp": 1700000000000}'
    letters.put(3, theirs, "missing-user_id")
    assert letters.redrive().stay == {"missing-user_id": 1}
    found, marked = letters_in(letters.on("clicks.dead"))
    check = reader_of("clicks", "items", Limits(), ClickFields({"user_id": "userId"}))
    assert redrive(found, marked, letters.producer, "clicks.dead", check=check).sent == 1
    (sent,) = letters.on("clicks")
    assert sent.value == theirs


def test_what_comes_back_is_not_sent_again_unless_asked(letters):
    letters.put(3, GOOD)
    letters.redrive()
    (back,) = letters.on("clicks")
    letters.put(9, back.value, headers=back.headers)
    assert dict(letters.redrive().stay) == {"sent again already": 1, "came back (--again)": 1}
    assert letters.redrive(again=True).sent == 1
    assert letters.redrive(again=True).sent == 0
    assert letters.on("clicks")[-1].headers == (("redriven-from", b"clicks:0:9"),)


def test_a_crash_between_sending_and_marking_sends_it_twice_at_most(letters, monkeypatch):
    letters.put(3, GOOD)
    with monkeypatch.context() as patch:

        def crash(*_):
            raise SourceError("killed")

        patch.setattr("online.commands.redrive.mark_redriven", crash)
        with pytest.raises(SourceError):
            letters.redrive()
    assert [letters.redrive().sent for _ in range(3)] == [1, 0, 0]
    assert [record.value for record in letters.on("clicks")] == [GOOD, GOOD]  # with one event id: learned once


def test_a_dry_run_sends_nothing_and_marks_nothing(letters):
    letters.put(3, GOOD)
    assert letters.redrive(dry_run=True).sent == 1
    assert letters.on("clicks") == []
    assert letters.redrive().sent == 1


def test_repaired_values_take_the_place_of_broken_ones(letters):
    letters.put(3, b"{", "malformed-json")
    letters.put(4, b"[", "malformed-json")
    letters.put(5, GOOD)
    repaired = {("clicks", 0, 3): GOOD.replace(b"u1", b"u2"), ("clicks", 0, 4): b"[]", ("clicks", 1, 99): GOOD}
    done = letters.redrive(repaired=repaired)
    assert (done.sent, dict(done.stay)) == (1, {"not-an-object": 1, "there is no such letter": 1})
    (sent,) = letters.on("clicks")
    assert (sent.key, json.loads(sent.value)["user_id"]) == (b"u2", "u2")  # in the order of who it is now
    assert letters.redrive(repaired=repaired).sent == 0


def test_an_item_goes_to_the_items(letters):
    letters.put(0, b'{"title": "x"}', topic="items")
    assert letters.redrive().sent == 1
    assert [record.key for record in letters.on("items")] == [b"u1"]


def test_a_value_that_was_cut_is_only_sent_repaired(letters):
    letters.put(3, GOOD, headers=(("truncated", b"9999999"),))
    assert dict(letters.redrive().stay) == {"its end is cut off": 1}
    assert letters.redrive(repaired={("clicks", 0, 3): GOOD}).sent == 1


def test_letters_are_chosen_by_reason_topic_and_time(letters):
    letters.put(3, GOOD, "internal-error")
    letters.put(4, GOOD, "future-timestamp")
    assert letters.redrive(Wanted(reason="future-timestamp")).sent == 1
    assert letters.redrive(Wanted(topic="items")).sent == 0
    assert letters.redrive(Wanted(since_ms=2**60)).sent == 0
    assert letters.redrive(Wanted(topic="clicks", since_ms=1)).sent == 1


def test_spans_and_times_are_understood_and_nothing_else():
    assert since_ms("2h", 10_000.0) == 2_800_000
    assert since_ms("2024-11-22T12:00:00+01:00", 0.0) == 1_732_273_200_000
    for text in ("yesterday", "2h30", "-1h", "2024-11-22T12:00:00", ""):
        with pytest.raises(LettersError, match="--since"):
            since_ms(text, 0.0)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "line 2"),
        ('{"topic": "clicks", "partition": 0, "offset": 3}', "'?value'? is missing"),
        ('{"topic": "clicks", "partition": "x", "offset": 3, "value": {}}', "line 2: invalid literal"),
        ("[]", "line 2"),
    ],
)
def test_a_file_that_cannot_be_used_says_which_line(tmp_path, line, wrong):
    path = tmp_path / "repaired.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(RedriveError, match=wrong):
        read_repaired(path)
    with pytest.raises(RedriveError, match="cannot be read"):
        read_repaired(tmp_path / "none.jsonl")


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, command, tmp_path):
    from rich.console import Console  # noqa: PLC0415

    monkeypatch.setattr(online.cli, "out", Console(width=160, highlight=False))
    monkeypatch.setenv("NEXTCLICK_DATA_DIR", str(tmp_path / "data"))
    return partial(command, "dead-letters")


def test_the_command_sends_marks_and_says_so(run, letters, tmp_path):
    letters.put(3, GOOD)
    letters.put(4, b"{", "malformed-json")
    assert json.loads(run("--redrive", "--dry-run", "--json")[1]) == {"sent": 1, "stay": {"malformed-json": 1}}
    assert "1 were sent round again" in run("--redrive")[1]
    assert "as they were: 2 (1 sent again already, 1 malformed-json)" in run("--redrive")[1]
    shown = json.loads(run("--json")[1])
    assert (shown["total"], shown["redriven"]) == (2, 1)
    assert [letter["redriven"] for letter in shown["latest"]] == [True, False]
    assert "(sent round again)" in run()[1]
    path = tmp_path / "repaired.jsonl"
    line = {"topic": "clicks", "partition": 0, "offset": 4, "value": json.loads(GOOD)}
    path.write_text(json.dumps(line) + "\n")
    assert json.loads(run("--redrive", "--with", str(path), "--json")[1]) == {"sent": 1, "stay": {}}
    assert len(letters.on("clicks")) == 2


def test_options_of_sending_need_it(run, letters):
    letters.put(3, GOOD)
    assert run("--dry-run")[0] == 2
    code, _, error = run("--since", "last week")
    assert (code, "\nnextclick: --since last week: give a span" in error) == (1, True)
    assert "no dead letters" in run("--since", "2100-01-01T00:00:00+00:00")[1]


@pytest.mark.parametrize(
    ("offset", "value", "line"),
    [
        (99, json.loads(GOOD), "there is no such dead letter as clicks partition 0 offset 99"),
        (4, [], "not sent: 1 (1 not-an-object)"),
    ],
)
def test_a_letter_that_was_named_and_not_sent_is_an_error(  # noqa: PLR0917
    run, letters, tmp_path, offset, value, line
):
    letters.put(4, b"{", "malformed-json")
    path = tmp_path / "repaired.jsonl"
    path.write_text(json.dumps({"topic": "clicks", "partition": 0, "offset": offset, "value": value}) + "\n")
    code, _, error = run("--redrive", "--with", str(path))
    assert (code, error.splitlines()[1:]) == (1, [f"nextclick: {path}: {line}"])
    letters.put(5, b"{", "malformed-json")
    good = [json.dumps({"topic": "clicks", "partition": 0, "offset": 5, "value": json.loads(GOOD)})]
    path.write_text("\n".join(good))
    assert [run("--redrive", "--with", str(path))[0] for _ in range(2)] == [0, 0]
