"""A forgotten user is nowhere any more, whatever crashes on the way, and nothing changes for others."""

import json
from typing import Any

import numpy as np
import pytest

from online.config.settings import Settings
from online.evaluation.town import Town
from online.learner.abuse_filter import user_hash_of
from online.learner.learner import Learner
from online.worker.array_file import ArrayFile
from online.worker.forget import Forgetting
from online.worker.loop_state import capture
from online.worker.poison_pills import InconsistentStateError
from stream.events import Click, Forget, encode, encode_forget
from stream.feedback import Feedback
from stream.source import Partition
from stream.user_ids import digest_of, hash_of_digest
from tests.online.conftest import NOW, SMALL, AbortedError


def forget(user: str) -> bytes:
    return encode_forget(Forget(user_sha256=digest_of(user), timestamp=NOW))


def busiest(clicks: list[Click]) -> str:
    users = [click.user_id for click in clicks]
    return max(set(users), key=users.count)


def traces(arrays: Any, state: Any, user: str) -> list[str]:
    """Wherever the id or the number of its owner stands in what a checkpoint would hold: a walk of its own."""
    numbers = {name: array for name, array in arrays.items() if array.dtype.kind in "iu"}
    found = [name for name, array in numbers.items() if (array == hash_of_digest(digest_of(user))).any()]
    waiting = [("", state)]
    while waiting:
        path, one = waiting.pop()
        if path.startswith("/learner/items") or path.startswith("/items"):
            continue
        if isinstance(one, dict):
            found += [f"{path}/{name}" for name in one if name == user]
            waiting += [(f"{path}/{name}", value) for name, value in one.items()]
        elif isinstance(one, list | tuple):
            waiting += [(path, value) for value in one]
        elif one == user:
            found.append(path)
    return found


def learn(learner: Learner, clicks: list[Click]) -> None:
    for start in range(0, len(clicks), 16):
        learner.learn(clicks[start : start + 16])
        learner.states.rebuild()


def as_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


@pytest.fixture(scope="module", params=[{}, {"event_weights": "click=1"}], ids=["plain", "worth"])
def learned(request, tmp_path_factory):
    """What a learner holds after 160 clicks; the settings, later clicks, and who clicked most."""
    clicks = list(Town(users=8, items=40, seed=5, start=NOW - 172_800).clicks(200))
    settings = Settings(**{"data_dir": tmp_path_factory.mktemp("data"), **SMALL, **request.param})
    learner = Learner(settings)
    learn(learner, clicks[:160])
    return settings, *learner.to_state(), clicks[160:], busiest(clicks[:160])


@pytest.fixture
def knowing(learned):
    """That learner again -> itself, later clicks, who clicked most."""
    settings, arrays, state, later, user = learned
    learner = Learner(settings)
    learner.load_state({name: array.copy() for name, array in arrays.items()}, as_json(state))
    return learner, later, user


def test_a_learner_holds_nothing_of_who_was_forgotten(knowing):
    learner, _, user = knowing
    learner.hidden.hide(user, "an item")
    arrays, state = learner.to_state()
    assert len(traces(arrays, as_json(state), user)) > 5  # the walk finds them as long as they are there
    held = learner.holds(digest_of(user))
    assert all(held.values()), held
    (kept,) = learner.histories.lengths(learner.histories.find([user]))
    assert learner.forget(digest_of(user))["history_clicks"] == kept
    assert not any(learner.holds(digest_of(user)).values())
    arrays, state = learner.to_state()
    assert traces(arrays, as_json(state), user) == []
    assert not any(learner.forget(digest_of(user)).values())


def test_slots_of_who_was_forgotten_hold_nothing_but_zeros(knowing):
    learner, _, user = knowing
    memory, store = learner.states.memory, learner.store
    slot, own_slot = memory.directory.slot(user), store.directory.slot(user)
    moments = np.flatnonzero(store.log.user_hashes == user_hash_of(user))
    assert min(slot, own_slot) >= 0
    assert len(moments) > 10
    assert store.index.own[own_slot].any()
    assert learner.moment_states[moments].any()
    learner.forget(digest_of(user))
    assert all(not tensor[slot].any() for name, tensor in memory.state_tensors().items() if not name.endswith("used"))
    assert not store.index.own[own_slot].any()
    assert not store.index.own_counts[own_slot].any()
    for part in store.log._fields[:-1]:
        assert not getattr(store.log, part)[moments].any()
    assert not learner.moment_states[moments].any()


def test_others_keep_what_was_theirs(knowing):
    learner, later, user = knowing
    others = [one for one in learner.histories.users() if one != user]
    before = learner.histories.oldest_first(learner.histories.find(others), 12)
    replayed = learner.replay.filled
    found = learner.forget(digest_of(user))
    after = learner.histories.oldest_first(learner.histories.find(others), 12)
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert learner.histories.users() == others
    assert learner.replay.filled == replayed - found["replay_clicks"]
    assert all(ranking.items for ranking in learner.rank(others))
    learn(learner, [later[0].model_copy(update={"user_id": user}), *later[1:16]])  # and it goes on, as with a new user
    assert user in learner.histories


def test_a_learner_that_forgot_and_is_restored_goes_on_bit_for_bit(knowing, same):
    one, later, user = knowing
    one.forget(digest_of(user))
    arrays, state = one.to_state()
    other = Learner(one.settings)
    other.load_state({name: array.copy() for name, array in arrays.items()}, as_json(state))
    learn(one, later)
    learn(other, later)
    (arrays, state), (others_arrays, others_state) = one.to_state(), other.to_state()
    assert same(arrays, others_arrays)
    assert as_json(state) == as_json(others_state)


def test_an_id_within_another_is_another(small):
    learner = Learner(small())
    for n in range(4):
        learner.learn([Click(user_id=user, item_id=f"i{n}", timestamp=NOW + n) for user in ("u1", "u11", "xu1", "U1")])
    learner.forget(digest_of("u1"))
    assert learner.histories.users() == ["u11", "xu1", "U1"]
    for user in ("u11", "xu1", "U1"):
        assert learner.holds(digest_of(user))["moments"] == 4


def test_odd_ids_are_forgotten_like_others(harness):
    users = ['a"b\\c', "пользователь", "nul\x00byte", " ", "42", "*", "u:1", "clicks"]
    harness.publish([Click(user_id=user, item_id=f"i{n}", timestamp=NOW + n) for n in range(2) for user in users])
    harness.publish([forget(user) for user in users[1:]])
    loop = harness.run(forget_checkpoints_s=0.0)
    assert set(harness.lists.held) == set(users[:1])
    harness.publish([forget(users[0])])
    loop = harness.run(forget_checkpoints_s=0.0)
    assert not harness.lists.held
    for user in users:
        assert answered(loop, user, 24) == nothing_left(loop)


# --- the loop ----------------------------------------------------------------------------------------------------


def answered(loop, user: str, offset: int) -> dict[str, Any]:
    return loop.forgetting.answer({"forget": digest_of(user), "after": [["clicks", 0, offset]], "search": True})


def nothing_left(loop) -> dict[str, Any]:
    kinds = [*loop.learner.holds("0" * 64), "lists to be written", "latest clicks"]
    numbers = [str(number) for number in loop.checkpoints.numbers()]
    return {
        "passed": True,
        "waits_for": [],
        "memory": dict.fromkeys(kinds, 0),
        "checkpoints": dict.fromkeys(numbers, 0),
    }


@pytest.mark.usefixtures("either_kind")
@pytest.mark.parametrize("changed", [{}, {"event_weights": "click=1,return=-5"}], ids=["plain", "worth"])
def test_memory_lists_and_every_checkpoint_are_without_the_forgotten_user(harness, town_clicks, changed):
    user = busiest(town_clicks[:64])
    harness.publish(town_clicks[:64])
    harness.publish_feedback(Feedback(user_id=user, item_id="an item", kind="hide", timestamp=NOW))
    loop = harness.run(**changed)
    found = answered(loop, user, 64)
    assert all(found["memory"][kind] for kind in loop.learner.holds(digest_of(user)))
    assert all(found["checkpoints"].values())
    harness.publish([forget(user), *(one for one in town_clicks[64:70] if one.user_id != user)])
    loop = harness.run(forget_checkpoints_s=0.0, **changed)
    assert answered(loop, user, 65) == nothing_left(loop)
    assert user not in harness.lists.held
    (notice,) = [one for one in loop.notices.latest if one.kind == "forgotten"]
    assert notice.figures["moments"] > 0
    assert user not in json.dumps(notice.as_dict())
    assert digest_of(user) not in json.dumps(notice.as_dict())


@pytest.mark.usefixtures("either_kind")
def test_older_checkpoints_stay_for_the_time_that_is_set(harness, town_clicks):
    harness.publish([*town_clicks[:48], forget(town_clicks[0].user_id)])
    user, now = town_clicks[0].user_id, [0.0]
    loop = harness.run(monotonic=lambda: now[0], forget_checkpoints_s=60.0, checkpoints_kept=10)
    found = answered(loop, user, 49)
    assert any(found["checkpoints"].values())
    assert "older checkpoints go within 60 s" in found["waits_for"][0]
    now[0] += 61.0
    for _ in range(10):  # one with each turn
        loop.turn()
    assert answered(loop, user, 49) == nothing_left(loop)


@pytest.mark.usefixtures("either_kind")
def test_a_version_can_be_rolled_back_to_after_its_checkpoint_was_cut_down(harness, town_clicks):
    harness.publish(town_clicks[:40])
    loop = harness.begin(harness.loop(forget_checkpoints_s=0.0, checkpoints_kept=1))
    while loop.turn():
        pass
    loop.supervisor.ask_finetuning("for a version")
    while loop.learner.version == 1:
        loop.turn()
    harness.publish(town_clicks[40:64])
    loop.supervisor.ask_finetuning("for another")
    while loop.learner.version == 2:
        loop.turn()
    version = loop.versions.held(2)
    weights, state = loop.checkpoints.read(version.checkpoint)
    user = busiest(town_clicks[:64])
    harness.publish([forget(user)])
    while loop.turn() or loop.forgetting.waits_for():
        pass
    thin, thin_state = loop.checkpoints.read(version.checkpoint)
    assert set(thin) == {name for name in weights if name.startswith("weights.")}
    assert all(np.array_equal(thin[name], weights[name]) for name in thin)
    assert thin_state["learner"]["items"] == state["learner"]["items"]
    assert loop.checkpoints.stripped() == loop.versions.pinned
    assert answered(loop, user, 65)["checkpoints"].keys() >= {str(version.checkpoint)}
    assert not any(answered(loop, user, 65)["checkpoints"].values())
    loop.supervisor.ask_rollback(2, "asked for")
    loop.turn()
    assert (loop.learner.version, loop.versions.live.parent) == (4, 2)
    again = harness.begin(harness.loop())  # never from the stripped one
    assert again.checkpointer.last_saved.number == loop.checkpointer.last_saved.number


@pytest.mark.usefixtures("increments")
def test_no_file_holds_the_user_not_even_the_full_one_that_increments_share(harness, town_clicks):
    user = busiest(town_clicks[:64])
    harness.publish([*town_clicks[:64], forget(user), *(one for one in town_clicks[64:128] if one.user_id != user)])
    loop = harness.run(forget_checkpoints_s=0.0, poll_records_max=16)
    kinds = [loop.checkpoints.is_increment(number) for number in loop.checkpoints.numbers()]
    assert any(kinds)
    for path in loop.checkpoints.folder.glob("*/arrays.zst"):
        with path.open("rb") as file:
            content = ArrayFile(file)
            state = json.loads(content.read("state.json").tobytes())
            arrays = {name: content.read(name) for name in content.names if name != "state.json"}
        assert not traces(arrays, state, user)
        assert state["progress"]["learned"] >= 64  # it is a later one
    assert answered(loop, user, 65) == nothing_left(loop)


@pytest.mark.usefixtures("increments")
def test_after_a_user_was_forgotten_on_a_full_disk_the_next_one_is_full(harness, town_clicks):
    user, full = busiest(town_clicks[:48]), []

    def reached(step):
        if step == "checkpoint_manifest" and full:
            raise OSError(28, "No space left on device")

    harness.publish(town_clicks[:48])
    loop = harness.begin(harness.loop(reached, poll_records_max=16, forget_checkpoints_s=0.0))
    while loop.turn():
        pass
    assert loop.checkpoints.is_increment(loop.checkpoints.numbers()[-1])
    full.append(True)
    harness.publish([forget(user)])
    loop.turn()
    assert loop.checkpointer.failing_since is not None
    full.clear()
    for _ in range(5):
        loop.turn()
    assert not loop.checkpoints.is_increment(loop.checkpoints.numbers()[0])
    assert answered(loop, user, 49) == nothing_left(loop)


@pytest.mark.usefixtures("increments")
def test_the_search_looks_into_the_full_one_that_an_increment_shares(harness, town_clicks):
    user = town_clicks[0].user_id
    harness.publish(town_clicks[:48])
    loop = harness.run(poll_records_max=16)
    number = loop.checkpoints.numbers()[-1]
    assert loop.checkpoints.is_increment(number)
    with loop.checkpoints.opened(number) as (state, arrays):
        shown = dict(zip(arrays.names, arrays, strict=True)), state
    loop.learner.forget(digest_of(user))
    loop.writer.forget(digest_of(user))
    arrays, state = capture(loop)
    saved = loop.checkpoints.save(arrays, state)  # as a mistake would: not asked for a full one
    assert loop.checkpoints.is_increment(saved.number)
    assert traces(*shown, user)
    assert not traces(*loop.checkpoints.read(saved.number), user)
    assert answered(loop, user, 48)["checkpoints"][str(saved.number)]


def test_reading_from_the_beginning_forgets_again(harness, new_harness, town_clicks):
    user = busiest(town_clicks[:64])
    values = [*town_clicks[:40], forget(user), *(one for one in town_clicks[40:64] if one.user_id != user)]
    harness.publish(values)
    loop = harness.run()
    anew = new_harness()
    anew.publish(values)
    assert answered(anew.run(forget_checkpoints_s=0.0), user, 41)["memory"] == nothing_left(loop)["memory"]


def test_clicks_after_it_begin_anew(harness, town_clicks):
    user = busiest(town_clicks[:48])
    mine = [one for one in town_clicks[48:] if one.user_id == user][:3]
    harness.publish([*town_clicks[:48], forget(user), *mine])
    loop = harness.run(poll_records_max=512, micro_batch_max=32)  # all in one poll
    (slot,) = loop.learner.histories.find([user])
    assert loop.learner.histories.lengths(np.array([slot])).tolist() == [3]
    assert user in harness.lists.held


def test_forgetting_an_unknown_user_changes_nothing_for_others(harness, new_harness, town_clicks):
    def after(place, request):
        place.publish(town_clicks[:32])
        loop = place.begin(place.loop())
        for values in ([], request, town_clicks[32:64]):
            place.publish(values)
            while loop.turn():
                pass
        return place.everything(loop)

    one, other = after(harness, [forget("nobody")]), after(new_harness(), [])
    for known in (one, other):
        for part in ("progress", "history.origins", "versions"):  # offsets are one more; so are checkpoints
            known.pop(part)
        known["lists"] = {user: top.items for user, top in known["lists"].items()}
        known["popular"] = known["popular"].items
    assert one == other


@pytest.mark.usefixtures("either_kind")
@pytest.mark.parametrize("step", ["saving", "drop_checkpoints", "forget"])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_on_the_way_changes_nothing(harness, new_harness, town_clicks, step, after):
    user = busiest(town_clicks[:32])
    values = [*town_clicks[:32], b'{"user_id": "%s"}' % user.encode(), forget(user), *town_clicks[32:48]]
    harness.publish(values)
    loop = harness.loop(forget_checkpoints_s=0.0, checkpoint_interval_s=3600.0)
    harness.crash(loop.forgetting, step, call=1, after=after) if step != "drop_checkpoints" else harness.crash(
        loop.forgetting, step, call=2, after=after
    )
    with pytest.raises((AbortedError, InconsistentStateError)):
        harness.drain(harness.begin(loop))
    crashed = harness.run(forget_checkpoints_s=0.0)
    plain = new_harness()
    plain.publish(values)
    undisturbed = plain.run(forget_checkpoints_s=0.0)
    one, other = harness.everything(crashed), plain.everything(undisturbed)
    for known in (one, other):
        known.pop("notices")
        known.pop("versions")  # which checkpoint was the first
    assert one == other
    assert [letter.value for letter in harness.dead()] == []


def test_during_a_redis_outage_a_forgotten_list_is_deleted_later_and_not_written(harness, town_clicks):
    user = busiest(town_clicks[:48])
    harness.publish(town_clicks[:48])
    harness.run()
    assert user in harness.lists.held
    loop = harness.begin(harness.loop(forget_checkpoints_s=0.0))
    harness.lists.away = True
    harness.publish([forget(user)])
    harness.drain(loop)
    assert "Redis is unavailable" in answered(loop, user, 49)["waits_for"][0]
    assert user in harness.lists.held
    harness.lists.away = False
    loop = harness.begin(harness.loop(forget_checkpoints_s=0.0))
    loop.writer.renew_all()  # every user's
    while loop.turn() or loop.writer.waiting:
        pass
    assert user not in harness.lists.held
    assert answered(loop, user, 49)["waits_for"] == []


def test_dead_letters_before_it_go_and_others_stay(harness, town_clicks):
    user, other = "u1", "u11"
    harness.publish([b'{"user_id": "u1", "item_id": ""}', b'{"user_id": "u11"}', b"u1 is no json", b"\xff u11"])
    harness.publish([encode(town_clicks[0])])
    harness.run()
    assert len(harness.dead()) == 4
    harness.publish([b'{"user_id": 7, "item_id": "u1"}', forget(user), b'{"user_id": "u1"}'])
    loop = harness.run(forget_checkpoints_s=0.0)
    assert [letter.value for letter in harness.dead()] == [
        b'{"user_id": "u11"}', b"\xff u11", b'{"user_id": 7, "item_id": "u1"}', b'{"user_id": "u1"}',
    ]  # fmt: skip
    assert not loop.forgetting.has_pending
    assert other


def test_a_broker_that_refuses_is_asked_again(harness, town_clicks):
    harness.publish([encode(town_clicks[0]), b'{"user_id": "u1"}', forget("u1")])
    loop = harness.begin(harness.loop(forget_checkpoints_s=0.0))
    harness.eraser.away = True
    harness.drain(loop)
    assert len(harness.dead()) == 1
    assert "dead letters are not taken out" in answered(loop, "u1", 3)["waits_for"][0]
    again = harness.run(forget_checkpoints_s=0.0)  # a restart: the next checkpoint does it
    assert harness.dead() == []
    assert again.forgetting.waits_for() == []


def test_forgotten_twice_is_forgotten_once(harness, town_clicks):
    user = busiest(town_clicks[:32])
    harness.publish([*town_clicks[:32], forget(user), forget(user)])
    loop = harness.run()
    assert loop.notices.counts["forgotten"] == 1
    assert user not in loop.learner.histories


def test_a_fine_tuning_that_may_have_read_the_user_s_clicks_begins_anew(harness, town_clicks):
    harness.publish(town_clicks[:48])
    loop = harness.begin(harness.loop(finetune_slice_ms=1))
    while loop.turn():
        pass
    loop.supervisor.ask_finetuning("to see")
    loop.turn()
    under_way = loop.supervisor.finetuning
    assert under_way is not None
    harness.publish([forget(town_clicks[0].user_id)])
    loop.turn()
    assert loop.supervisor.finetuning is not under_way
    assert loop.supervisor.busy
    assert isinstance(loop.forgetting, Forgetting)


def test_partitions_each_have_it(harness, town_clicks):
    user = busiest(town_clicks[:48])
    harness.publish(town_clicks[:48], partitions=3)
    for number in range(3):
        harness.broker.append("clicks", forget(user), partition=number)
    loop = harness.run()
    assert not any(loop.learner.holds(digest_of(user)).values())
    assert loop.progress.next_offsets[Partition("clicks", 2)] > 0
