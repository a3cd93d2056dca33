"""What the users topic says is in the checkpoint, outlives crashes, and goes with a tombstone or when its user is
forgotten."""

import json
from contextlib import closing

import pytest

from online.commands.forget import forget
from online.config.settings import Settings
from online.worker.connections import needed_topics, open_reader
from stream.dead_letters import dead_letter
from stream.events import Click, Forget, encode_forget
from stream.source import Partition
from stream.user_ids import digest_of
from tests.online.conftest import NOW, SMALL, worker_thread

USERS = "users"
ON = {"users_topic": USERS}
PLACE = Partition(USERS, 0)


def value(**attributes):
    return json.dumps(attributes).encode()


def some_clicks(count, start=0):
    return [
        Click(user_id=f"u{n % 5}", item_id=f"i{n % 7}", timestamp=NOW - 1_000 + n) for n in range(start, start + count)
    ]


@pytest.fixture
def loop(harness):
    """A loop that knows three users, and has learned clicks of five."""
    for n in range(3):
        harness.publish_user(f"u{n}", value(town="x", age=30 + n))
    harness.publish(some_clicks(40))
    loop = harness.begin(harness.loop(**ON))
    while loop.turn():
        pass
    return loop


def test_users_are_known_and_in_the_checkpoint(harness, loop):
    assert loop.learner.groups.user_ids() == ["u0", "u1", "u2"]
    assert loop.progress.next_offsets[PLACE] == 3
    loop.finish()
    again = harness.begin(harness.loop(**ON))
    assert again.learner.groups.user_ids() == loop.learner.groups.user_ids()
    assert harness.users.began_at[-1] == {PLACE: 3}


def test_a_bad_record_becomes_a_dead_letter_with_its_reason(harness, loop):
    harness.publish_user("u9", b'{"tags": "vip"}')
    harness.publish_user("u8", value(town="y"))
    harness.drain(loop)
    (record,) = harness.dead()
    letter = dead_letter(record)
    assert (letter.topic, letter.reason) == (USERS, "invalid-tags")
    assert record.key == b"u9"
    assert "u8" in loop.learner.groups
    assert loop.progress.next_offsets[PLACE] == 5


def test_a_tombstone_erases_a_user_also_from_older_checkpoints_and_dead_letters(harness, loop):
    harness.publish_user("u1", b"no json")
    harness.publish_user("u2", b"no json, and u1 stands in it")
    harness.drain(loop)
    assert len(harness.dead()) == 2
    harness.publish_user("u1", None)
    loop = harness.begin(harness.loop(**ON, forget_checkpoints_s=0.0))
    loop.turn()
    assert "u1" not in loop.learner.groups
    assert [record.key for record in harness.dead()] == [b"u2"]
    harness.drain(loop)
    harness.run(**ON, forget_checkpoints_s=0.0)
    for number in loop.checkpoints.numbers():
        with loop.checkpoints.opened(number) as (state, _):
            assert "u1" not in state["learner"]["groups"]["users"]


def test_a_forgotten_user_has_no_attributes(harness, loop):
    request = Forget(user_sha256=digest_of("u1"), timestamp=NOW)
    harness.publish([encode_forget(request)])
    loop.turn()
    assert sorted(loop.learner.groups.user_ids()) == ["u0", "u2"]
    found = loop.answer_forget({"forget": digest_of("u1"), "after": [], "search": True})
    assert found["memory"]["user_attributes"] == 0


@pytest.mark.parametrize("step", ["items", "learn", "offsets", "checkpoint_rename", "commit"])
def test_after_a_crash_at_any_step_users_are_what_they_would_have_been(new_harness, step):
    def publish(harness, part):
        harness.publish_user(f"u{part}", value(town="x", part=part))
        harness.publish_user("u0", None if part == 2 else value(town="y"))
        harness.publish(some_clicks(20, 20 * part))

    whole, broken = new_harness(), new_harness()
    for part in range(4):
        publish(whole, part)
    wanted = whole.run(**ON).learner.groups
    calls = 0

    def reached(name):
        nonlocal calls
        calls += name == step
        if name == step and calls in {2, 4}:
            raise broken.aborted

    for part in range(4):
        publish(broken, part)
    for _ in range(3):
        loop = broken.loop(reached, **ON)
        try:
            broken.drain(broken.begin(loop))
            break
        except broken.aborted:
            continue
    groups = loop.learner.groups
    assert {user: groups._groups[user].tolist() for user in groups.user_ids()} == {
        user: wanted._groups[user].tolist() for user in wanted.user_ids()
    }
    assert loop.progress.next_offsets[PLACE] == 8


def test_a_worker_that_kept_nothing_of_users_reads_the_topic_again(harness, loop):
    harness.publish_user("u9", b"no json")
    harness.drain(loop)
    harness.publish(some_clicks(10, 40))
    harness.run()  # the setting is gone, and with it what was known
    again = harness.begin(harness.loop(**ON))
    assert harness.users.began_at[-1] == {}
    harness.drain(again)
    assert sorted(again.learner.groups.user_ids()) == ["u0", "u1", "u2"]
    assert len(harness.dead()) == 1  # no second one


def test_without_the_setting_there_is_no_topic():
    assert USERS not in {topic.name for topic in needed_topics(Settings())}
    assert {topic.name: topic.compacted for topic in needed_topics(Settings(**ON))}[USERS]


def test_publishing_users_and_forgetting_one_in_the_embedded_log(tmp_path, command, monkeypatch, free_port):
    monkeypatch.setenv("NEXTCLICK_DATA_DIR", str(tmp_path))
    file = tmp_path / "users.csv"
    file.write_text("user_id,district,age,tags\nada,north,31,vip|new\nbob,ada,44,\n,south,1,\n")
    code, _, told = command("users", str(file), "--bad-rows-max", "0.5")
    assert code == 1
    assert "NEXTCLICK_USERS_TOPIC" in told
    monkeypatch.setenv("NEXTCLICK_USERS_TOPIC", USERS)
    code, shown, _ = command("users", str(file), "--bad-rows-max", "0.5")
    assert code == 0
    assert "2 users published to topic users" in shown
    assert "left out, not readable as users: 1 invalid-id" in shown
    quick = {"data_dir": tmp_path, "embedded_redis_port": free_port, "forget_checkpoints_s": 0.0}
    settings = Settings(**{**SMALL, **ON, **quick})
    with closing(open_reader(settings, USERS)) as reader:
        found = {record.key: json.loads(record.value) for record in reader.read()}
    assert found[b"ada"] == {"district": "north", "age": 31.0, "tags": ["vip", "new"]}
    with worker_thread(settings):
        proof = forget(settings, "ada", timeout_s=60.0)
    assert proof.complete
    assert proof.found["topic users"] == proof.found["memory: user_attributes"] == 0
    with closing(open_reader(settings, USERS)) as reader:
        assert [record.key for record in reader.read()] == [b"bob"]  # whose district is called ada
