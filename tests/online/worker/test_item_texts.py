"""The worker has each text of items encoded once, and goes on from its checkpoint."""

import logging

import numpy as np
import pytest

from online.learner.content import texts
from online.learner.content.encoders import Encoder
from stream.items import Item, encode
from stream.source import Partition
from tests.online.worker.test_catalogue import publish, settings, taken  # noqa: F401 - a fixture

ITEMS = Partition("items", 0)


class Encoders:
    """Loads encoders whose identity is their name; notes their texts."""

    def __init__(self):
        self.encoded = []

    def load(self, name):
        def encode_texts(batch):
            self.encoded += batch
            return np.array([[len(text), text.count("e"), 1] for text in batch], np.float32)

        return Encoder(name, encode_texts)


@pytest.fixture
def encoders(monkeypatch):
    found = Encoders()
    monkeypatch.setattr(texts, "load_encoder", found.load)
    return found


def vector_of(loop, item_id):
    listable = loop.learner.listable
    return listable.content.arrays.vectors[listable.attributes.slot_of(item_id)].copy()


def publish_titles(harness, *titles):
    for title in titles:
        harness.publish_item(f"of {title}", encode(Item(item_id="x", title=title)))


def test_a_worker_encodes_each_text_once_and_after_a_restart_none_again(harness, encoders, town_clicks):
    harness.publish(town_clicks[:50])
    harness.publish_item("bad", b"no json")
    publish_titles(harness, "kettle", "green tea")
    loop = harness.begin(harness.loop(text_encoder="one"))
    harness.drain(loop)
    assert encoders.encoded == ["kettle", "green tea"]
    before = vector_of(loop, "of kettle")
    loop.finish()
    again = harness.begin(harness.loop(text_encoder="one"))
    assert harness.feed.began_at[-1] == {ITEMS: 3}
    publish_titles(harness, "kettle", "a cup")
    harness.publish(town_clicks[50:80])
    harness.drain(again)
    assert encoders.encoded == ["kettle", "green tea", "a cup"]
    assert (vector_of(again, "of kettle") == before).all()


def test_another_encoder_or_none_has_all_items_read_again(harness, encoders, town_clicks, caplog):
    harness.publish(town_clicks[:50])
    harness.publish_item("bad", b"no json")
    publish_titles(harness, "kettle", "green tea")
    found = []
    caplog.set_level(logging.INFO)
    for encoder in (None, "one", "one", "two", None):
        caplog.clear()
        loop = harness.begin(harness.loop(text_encoder=encoder))
        harness.publish(town_clicks[50 + 10 * len(found) :][:10])
        harness.drain(loop)
        found.append((harness.feed.began_at[-1] == {}, "the items topic is read again" in caplog.text))
        loop.finish()
    assert found == [(True, False), (True, True), (False, False), (True, True), (True, True)]
    assert encoders.encoded == ["kettle", "green tea"] * 2
    assert len(harness.dead()) == 1


def test_items_are_read_again_after_a_crash_before_the_first_of_them(harness, encoders, town_clicks):
    harness.publish(town_clicks[:50])
    publish_titles(harness, "kettle")
    loop = harness.begin(harness.loop())
    harness.drain(loop)
    loop.finish()
    harness.begin(harness.loop(text_encoder="one")).finish()
    loop = harness.begin(harness.loop(text_encoder="one"))
    harness.publish(town_clicks[50:60])
    harness.drain(loop)
    assert encoders.encoded == ["kettle"]
