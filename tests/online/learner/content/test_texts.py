"""Items without a vector get one of their text, which is encoded once: after a restart too."""

import json
import threading

import numpy as np
import pytest

from online.learner.content import texts as module
from online.learner.content.encoders import Encoder
from online.learner.content.texts import TEXT_CHARACTERS_MAX, TextVectors, text_of
from online.learner.learner import Learner
from stream.items import Item

WIDTH = 12


class FakeEncoder:
    """Encodes a text as counts of its letters; notes which texts it was given."""

    def __init__(self, identity="fake"):
        self.identity, self.batches = identity, []

    @property
    def encoded(self):
        return [text for batch in self.batches for text in batch]

    def encode(self, texts):
        self.batches.append(list(texts))
        if any("bad" in text for text in texts):
            raise ValueError("no such letter")
        return np.array([[text.count(chr(ord("a") + n)) for n in range(WIDTH)] for text in texts], np.float32)

    def load(self, name):
        assert name == "some"
        return Encoder(self.identity, self.encode)


@pytest.fixture
def encoder(monkeypatch):
    return use(monkeypatch, FakeEncoder())


def use(monkeypatch, encoder):
    monkeypatch.setattr(module, "load_encoder", encoder.load)
    return encoder


def items(*titles, **fields):
    return [Item(item_id=f"i{title}", title=title, **fields) for title in titles]


def restored(texts, held=100):
    other = TextVectors("some", held)
    other.load_state({name: part.copy() for name, part in texts.to_state().items()}, texts.identity)
    return other


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (Item(item_id="i", title="Ein Stuhl", tags=("rot", "Holz")), "Ein Stuhl, rot, Holz"),
        (Item(item_id="i", tags=("赤い",)), "赤い"),
        (Item(item_id="i", title=" ", tags=("", "a")), "a"),
        (Item(item_id="i", attributes={"price": 3.0}), ""),
        (Item(item_id="i", title="x" * 5_000), "x" * TEXT_CHARACTERS_MAX),
    ],
)
def test_the_text_of_an_item_is_its_title_and_tags(item, text):
    assert text_of(item) == text


def test_a_text_is_encoded_once_after_a_restart_too(encoder):
    texts = TextVectors("some", 100)
    first = texts.of(items("abc", "abd", "abc"))
    assert encoder.encoded == ["abc", "abd"]
    assert {text: vector.dtype for text, vector in first.items()} == dict.fromkeys(["abc", "abd"], np.float16)
    assert np.linalg.norm(first["abc"].astype(np.float64)) == pytest.approx(1, abs=1e-3)
    for again in (texts, restored(texts)):
        found = again.of(items("abd", "abc"))
        assert all((found[text] == first[text]).all() for text in first)
    assert encoder.encoded == ["abc", "abd"]


def test_items_with_a_vector_of_their_own_or_without_text_are_not_encoded(encoder):
    assert TextVectors("some", 100).of([*items("abc", vector=(1.0,)), Item(item_id="i", attributes={"n": 1.0})]) == {}
    assert encoder.encoded == []


def test_many_texts_are_encoded_in_batches(encoder):
    found = TextVectors("some", 100).of(items(*["a" * (1 + n) for n in range(70)]))
    assert [len(batch) for batch in encoder.batches] == [32, 32, 6]
    assert len(found) == 70


def test_vectors_of_another_encoder_are_dropped(monkeypatch):
    use(monkeypatch, FakeEncoder())
    texts = TextVectors("some", 100)
    texts.of(items("abc", "abd"))
    other = use(monkeypatch, FakeEncoder("another"))
    changed = restored(texts)
    assert changed.encoder.identity == changed.identity == "another"
    assert len(changed) == 0
    changed.of(items("abc"))
    assert other.encoded == ["abc"]


def test_a_text_that_cannot_be_encoded_costs_one_line_and_the_others_nothing(encoder, caplog):
    texts = TextVectors("some", 100)
    for _ in range(3):
        assert set(texts.of(items("abc", "a bad one", "abd", "zzz"))) == {"abc", "abd"}  # zzz: all zeros
    assert encoder.encoded.count("a bad one") == 2  # in the batch, and alone
    assert [record.message for record in caplog.records] == [
        "NEXTCLICK_TEXT_ENCODER: 'a bad one' cannot be encoded (ValueError: no such letter); "
        "its item goes on without a vector"
    ]
    assert len(restored(texts)) == 2  # the others are tried again


@pytest.mark.usefixtures("encoder")
def test_the_log_names_some_failures_only(caplog):
    TextVectors("some", 100).of(items(*[f"bad {n}" for n in range(50)]))
    assert len(caplog.records) == module.FAILURES_LOGGED_MAX
    assert caplog.records[-1].message.endswith("; further ones are not named")


def test_what_is_held_is_bounded_and_the_text_unused_for_longest_makes_room(encoder):
    texts = TextVectors("some", 3)
    for title in ("a", "b", "c", "a", "d"):
        texts.of(items(title))
    assert len(texts) == 3
    texts.of(items("a", "c", "d"))
    assert encoder.encoded == ["a", "b", "c", "d"]
    assert len(restored(texts, held=2)) == 2


@pytest.mark.usefixtures("encoder")
def test_no_thread_waits_while_another_one_encodes():
    began, go_on = threading.Event(), threading.Event()
    texts = TextVectors("some", 100)
    texts.of(items("abc"))

    def slow(batch):
        began.set()
        assert go_on.wait(30)
        return FakeEncoder().encode(batch)

    texts.__dict__["encoder"] = Encoder("fake", slow)
    thread = threading.Thread(target=texts.of, args=[items("abd")])
    thread.start()
    assert began.wait(30)
    assert set(texts.of(items("abc"))) == {"abc"}
    assert len(texts.to_state()["hashes"]) == 1
    go_on.set()
    thread.join()
    assert len(texts) == 2


# A learner


@pytest.fixture
def settings(small):
    return small()


def learner_of(settings, **changes):
    return Learner(settings.model_copy(update={"text_encoder": "some"} | changes))


def vectors(learner, item_id):
    listable = learner.listable
    return listable.content.arrays.vectors[listable.attributes.slot_of(item_id)]


@pytest.mark.usefixtures("encoder")
def test_an_item_is_compared_as_though_its_record_had_the_vector_of_its_text(settings):
    with_encoder, plain = learner_of(settings), Learner(settings)
    catalogue = [*items("abc", "abd", tags=("t",)), Item(item_id="own", title="abe", vector=(1.0, 2.0))]
    with_encoder.put_items(catalogue)
    made = with_encoder.listable.texts.of(catalogue)
    told = [
        item if item.vector else item.model_copy(update={"vector": tuple(made[text_of(item)].tolist())})
        for item in catalogue
    ]
    plain.put_items(told)
    for item in catalogue:
        assert (vectors(with_encoder, item.item_id) == vectors(plain, item.item_id)).all()
    without = Learner(settings)
    without.put_items(catalogue)
    assert (vectors(with_encoder, "iabc") != vectors(without, "iabc")).any()
    assert (vectors(with_encoder, "own") == vectors(without, "own")).all()


def test_a_checkpoint_has_the_vectors_and_one_without_has_the_items_read_again(settings, encoder, monkeypatch):
    old, learner = Learner(settings), learner_of(settings)
    for each in (old, learner):
        each.put_items(items("abc", "abd"))

    def loaded(by, saved):
        arrays, state = saved.to_state()
        by.load_state({name: part.copy() for name, part in arrays.items()}, json.loads(json.dumps(state)))
        return by

    assert not any("texts" in name for name in old.to_state()[0])
    same = loaded(learner_of(settings), learner)
    assert not same.listable.open_encoder()
    same.put_items(items("abc", "abd"))
    assert encoder.encoded == ["abc", "abd"]
    assert loaded(learner_of(settings), old).listable.open_encoder()
    assert loaded(Learner(settings), learner).listable.open_encoder()
    assert not loaded(Learner(settings), old).listable.open_encoder()
    use(monkeypatch, FakeEncoder("another"))
    assert loaded(learner_of(settings), learner).listable.open_encoder()


def test_without_content_there_is_no_encoder(settings):
    assert learner_of(settings, content=False).listable.texts is None
