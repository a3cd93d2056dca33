"""The shops of docs/examples, in front of the real API: their shelf changes after a click, and never is an error."""

import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient

from online.api.serve import Api
from online.config.settings import Settings
from stream.embedded_redis import EmbeddedRedis
from stream.events import parse_click
from stream.lists import Lists, TopList

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"
NEXT = {"kettle": ("tea", "cup", "kettle"), "bread": ("knife", "honey", "<script>")}


class Worker:
    """Stands in for broker and worker: a click becomes its user's list at once."""

    def __init__(self, lists: Lists) -> None:
        self._lists = lists

    def send(self, topic: str, *, value: bytes, **_: Any) -> None:
        assert topic == "clicks"
        click = parse_click(value)
        self._lists.write({click.user_id: top(*NEXT[click.item_id])})

    def flush(self) -> None:
        pass


def top(*items: str, source: str = "personal") -> TopList:
    now = int(time.time() * 1_000)
    return TopList(
        items=list(items), scores=[0.5] * len(items), version=1, offset="0:1", clicked_at=1, written_at=now,
        source=source,
    )  # fmt: skip


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with EmbeddedRedis() as redis:
        lists = Lists(redis.client, ttl_s=60)
        lists.write({}, top("lamp", "book", "kettle", "bread", source="popular"))
        served = Api(Settings(api_port=0, api_read_only=False), lists, Worker(lists)).start()
        monkeypatch.setenv("NEXTCLICK_URL", served.url)
        yield served
        served.close()


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def shelf(page: str) -> tuple[list[str], str]:
    """The items on a page, and the list's source."""
    [source] = re.findall(r"source: (\w+)", page)
    return [unescape(item) for item in re.findall(r'formaction="/click/([^"]*)"', page)], source


def test_a_shelf_of_fastapi_changes_after_a_click(api) -> None:
    with TestClient(load("fastapi_shop").app) as browser:
        assert shelf(browser.get("/").text) == (["lamp", "book", "kettle", "bread"], "popular")
        page = browser.post("/click/kettle")  # which leads back to the shelf
        assert (page.status_code, str(page.url).endswith("/")) == (200, True)
        assert shelf(page.text) == (["tea", "cup", "kettle"], "stored")
        assert shelf(browser.post("/click/bread").text) == (
            ["knife", "honey"],
            "stored",
        )  # what it does not sell is not
        assert browser.post("/click/yacht").status_code == 404
        api.close()
        items, source = shelf(browser.get("/").text)
        assert (len(items), items[0], source) == (6, "kettle", "default")
        assert browser.post("/click/kettle").status_code == 200


def test_a_shelf_of_django_changes_after_a_click(api) -> None:
    pytest.importorskip("django")
    load("django_shop")
    from django.test import Client as Browser  # noqa: PLC0415 - it needs the settings that the shop makes

    browser = Browser(enforce_csrf_checks=True)
    page = browser.get("/").content.decode()
    assert shelf(page) == (["lamp", "book", "kettle", "bread"], "popular")
    [token] = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    form = {"csrfmiddlewaretoken": token}
    assert browser.post("/click/kettle").status_code == 403  # a page of another site
    page = browser.post("/click/kettle", form, follow=True)
    assert shelf(page.content.decode()) == (["tea", "cup", "kettle"], "stored")
    assert browser.post("/click/yacht", form).status_code == 404
    api.close()
    items, source = shelf(browser.get("/").content.decode())
    assert (len(items), items[0], source) == (6, "kettle", "default")
    assert browser.post("/click/kettle", form).status_code == 302


def test_the_examples_are_small_and_name_only_settings_of_their_own() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 120
    assert "DJANGO_SETTINGS_MODULE" not in os.environ
