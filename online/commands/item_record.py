"""Publishes one record of an item: whether lists may hold it, or that it no longer exists."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import typer

from online.commands.embedded_folder import say_folder
from online.config.settings import Settings
from online.worker.connections import open_producer, prepare_topics
from stream.events import BadEvent
from stream.items import Item, encode, parse


@dataclass(frozen=True)
class ItemRecord:
    """What a record is to say. `item`: None withdraws it."""

    item: Item | None
    state: str


def wanted_record(
    *, available: bool, unavailable: bool, withdraw: bool, title: str | None, tags: Sequence[str] | None
) -> ItemRecord | None:
    """Returns the record that the options ask for; None: none. Raises typer.BadParameter where they contradict."""
    flags = {"--available": available, "--unavailable": unavailable, "--withdraw": withdraw}
    given = [name for name, is_given in flags.items() if is_given]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} contradict each other: give one")
    if (title is not None or tags) and (not given or withdraw):
        raise typer.BadParameter(
            "--title and --tag go with --available or --unavailable: the record replaces the item's earlier one"
        )
    if not given:
        return None
    if withdraw:
        return ItemRecord(None, "withdrawn")
    item = Item(item_id="-", title=title, tags=tuple(tags or ()), available=available)
    return ItemRecord(item, "available" if available else "not available")


def publish_item(load: Callable[[], Settings], item_id: str, record: ItemRecord) -> None:
    """Publishes a record.

    Args:
        load: returns the settings, once the id is known to be one.
        item_id: of the item.
        record: what it says.

    Raises:
        typer.BadParameter: no item can have this id, or the record is none.
        OtherFolderError: the log is embedded, and no worker has run in its folder.
        SourceError: the broker refuses it.
    """
    key, value = os.fsencode(item_id), None if record.item is None else encode(record.item)
    checked = parse(key, value)
    if isinstance(checked, BadEvent):
        raise typer.BadParameter(checked.detail)
    settings = load()
    say_folder(settings, "item")
    prepare_topics(settings)
    with closing(open_producer(settings)) as producer:
        producer.send(settings.items_topic, key=key, value=value)
    print(f"{item_id}: published to topic {settings.items_topic} as {record.state}")
