"""The worker answers in time or not at all, within its share of the time, and no question harms another."""

import time

import fakeredis
import pytest

from online.learner.learner import Learner
from online.worker.asking import POLL_S, Asking
from stream.items import Item
from stream.questions import QuestionQueue, WireQuestion


class Clock:
    """Seconds since 1970, and monotonic ones."""

    def __init__(self):
        self.now = 1_730_500_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def asking(small, town_clicks, clock):
    settings = small(users_held=200, ask_batch_max=4)
    learner = Learner(settings)
    for start in range(0, 160, 16):
        learner.learn(town_clicks[start : start + 16])
    learner.put_items([Item(item_id=town_clicks[0].item_id, attributes={"price": 3.0})])
    return Asking(settings, learner, QuestionQueue(fakeredis.FakeRedis()), clock=clock, monotonic=clock)


def question(clock, number=1, **fields):
    return WireQuestion(id=number, asker="me", asked_at=clock.now, timeout_ms=100, **fields)


def waiting(asking, *questions):
    asking._waiting.extend(questions)


def sent(asking):
    found = []
    while not asking._answers.empty():
        found += [answer for _, answer in asking._answers.get()]
    return found


def test_all_that_waits_is_answered_in_order(asking, clock, town_clicks):
    waiting(asking, *(question(clock, n, user_id=town_clicks[n].user_id) for n in range(4)))
    assert asking.step(idle=True) == 4
    assert [answer.id for answer in sent(asking)] == [0, 1, 2, 3]
    assert asking.describe()["answered"] == 4


def test_an_objective_of_a_question_is_applied_and_a_wrong_one_refused(asking, clock, town_clicks):
    user = town_clicks[0].user_id
    objectives = {1: None, 2: "-p_click", 3: "p_buy"}
    plain, least, wrong = asking.answer(
        [question(clock, number, user_id=user, objective=text) for number, text in objectives.items()]
    )
    assert least.items != plain.items
    assert least.scores[0] > least.scores[-1]
    assert (wrong.refused, wrong.error) == (
        True,
        "objective: at character 1: nothing is called 'p_buy'; there are p_click",
    )


def test_a_question_that_nobody_waits_for_any_more_is_dropped_and_counted(asking, clock):
    waiting(asking, question(clock, 1))
    clock.now += 0.06
    waiting(asking, question(clock, 2))
    clock.now += 0.06
    asking.step(idle=True)
    assert [answer.id for answer in sent(asking)] == [2]
    assert asking.describe()["late"] == 1


def test_while_clicks_wait_questions_get_their_share_of_the_time(asking, clock, monkeypatch):
    answered = []
    answer = asking.answer

    def slow(wires):
        clock.now += 0.05
        answered.append(len(wires))
        return answer(wires)

    monkeypatch.setattr(asking, "answer", slow)
    began, spent_before = clock.now, asking.busy_s
    for turn in range(200):
        clock.now += 0.02  # learning
        waiting(asking, *(question(clock, 10 * turn + n) for n in range(3)))
        asking.step(idle=False)
        asking._waiting.clear()
    share = (asking.busy_s - spent_before) / (clock.now - began)
    assert 0.1 < share < asking.settings.ask_share_max + 0.03
    waiting(asking, question(clock))
    clock.now += 0.001
    asking._credit_s = -1.0
    assert asking.step(idle=False) == 0
    assert asking.step(idle=True) == 1  # nothing else is to be done


def test_an_error_in_one_question_is_its_answer_and_harms_no_other(asking, clock, monkeypatch):
    answer = asking.learner.answerer.answer

    def failing(questions):
        if any(one.user_id == "bug" for one in questions):
            raise ZeroDivisionError("secret")
        return answer(questions)

    monkeypatch.setattr(asking.learner.answerer, "answer", failing)
    wires = [question(clock, 1), question(clock, 2, user_id="bug"), question(clock, 3, where="colour = 'red'")]
    wires += [
        question(clock, 4, where="price <"),
        question(clock, 5, where="price < 4"),
        question(clock, 6, kind="latest"),
    ]
    one, bug, missing, wrong, filtered, latest = asking.answer(wires)
    assert all(answer.items for answer in (one, filtered, latest))
    assert (bug.error, bug.refused) == ("internal error: ZeroDivisionError", False)
    assert missing.refused
    assert "no item has an attribute 'colour'" in missing.error
    assert wrong.refused
    assert "at character 8" in wrong.error
    assert asking.counts["failed"] == 1


def test_the_present_moment_is_the_clocks_unless_old_clicks_are_replayed(asking, clock):
    latest = asking.learner.now[0]
    clock.now = latest + 3_600
    assert asking.now() == clock.now
    clock.now = latest + 10 * 86_400
    assert asking.now() == latest
    clock.now = latest - 5
    assert asking.now() == latest


def test_the_idle_loop_polls_in_short_steps_only_while_questions_come(asking, clock):
    assert asking.poll_timeout_s(0.05) == 0.05
    asking._latest_at = clock.now
    assert asking.poll_timeout_s(0.05) == POLL_S
    waiting(asking, question(clock))
    assert asking.poll_timeout_s(0.05) == 0.0
    asking._waiting.clear()
    clock.now += 60
    assert asking.poll_timeout_s(0.05) == 0.05


def test_its_threads_take_questions_and_send_answers_and_outlive_redis(small, town_clicks):
    server = fakeredis.FakeServer()
    client = fakeredis.FakeRedis(server=server)
    learner = Learner(small())
    learner.learn(town_clicks[:16])
    asking = Asking(small(), learner, QuestionQueue(client))
    asker = QuestionQueue(fakeredis.FakeRedis(server=server))
    asking.start()
    try:
        for outage in (False, True):
            if outage:
                server.connected = False
                time.sleep(0.6)
                server.connected = True
                time.sleep(0.6)
            now = WireQuestion(
                id=7, asker="me", asked_at=time.time(), timeout_ms=60_000, user_id=town_clicks[0].user_id
            )
            asker.put([(None, now)], 5)
            deadline = time.monotonic() + 30
            while not asking.step(idle=True):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            (answer,) = asker.answers("me", 10)
            assert answer.items
    finally:
        asking.close()
    assert not any(thread.is_alive() for thread in asking._threads)
