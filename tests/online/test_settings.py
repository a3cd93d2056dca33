"""Settings are checked once, all of them, and a mistake is named with the variable that has it."""

import pytest
from pydantic import ValidationError

from online.settings import PREFIX, Settings, SettingsError, load_settings


def problems(**overrides):
    with pytest.raises(SettingsError) as error:
        load_settings(**overrides)
    first, *lines = str(error.value).splitlines()
    assert first == "these settings cannot be used:"
    assert all(line.startswith("  ") for line in lines)
    return [line.strip() for line in lines]


def test_the_defaults_can_be_used_and_are_on_embedded_parts():
    settings = load_settings()
    assert settings.kafka_bootstrap_servers is None
    assert settings.redis_url is None
    assert settings.checkpoints_dir == settings.data_dir / "checkpoints"


def test_variables_are_read_and_overrides_win(monkeypatch, tmp_path):
    monkeypatch.setenv("NEXTCLICK_WIDTH", "16")
    monkeypatch.setenv("NEXTCLICK_LAYERS", "lsh, local,lsh")
    monkeypatch.setenv("NEXTCLICK_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NEXTCLICK_EXCLUDE_SEEN", "true")
    monkeypatch.setenv("NEXTCLICK_HEADS", "")  # empty is unset
    settings = load_settings(heads=4)
    assert (settings.width, settings.heads, settings.layers) == (16, 4, ("lsh", "local", "lsh"))
    assert (settings.exclude_seen, settings.log_path) == (True, tmp_path / "log.db")


def test_every_wrong_variable_is_listed_at_once_by_name(monkeypatch):
    wrong = {
        "WIDTH": "wide", "HEADS": "0", "LAYERS": "local,global", "DROPOUT": "1", "API_PORT": "70000",
        "LEARNING_RATE": "-1", "POLL_TIMEOUT_S": "inf", "DEVICE": "tpu", "EXCLUDE_SEEN": "perhaps", "WINDOW": "1",
        "CLICKS_TOPIC": "", "HISTORY_MAX": "1", "DRIFT_DELTA": "1.5",
    }  # fmt: skip
    for name, value in wrong.items():
        monkeypatch.setenv(PREFIX + name, value)
    del wrong["CLICKS_TOPIC"]  # empty is unset
    named = [line.split(":")[0] for line in problems()]
    assert set(named) == {PREFIX + name for name in wrong}
    assert len(named) == len(wrong)


def test_settings_that_do_not_fit_together_are_all_listed(monkeypatch):
    for name, value in {"WIDTH": 10, "HEADS": 3, "BUCKETS": 5, "USERS_HELD": 10, "ONLINE_HISTORY": 500}.items():
        monkeypatch.setenv(PREFIX + name, str(value))
    lines = problems()
    assert [[name for name in line.replace("(", " ").split() if name.startswith(PREFIX)] for line in lines] == [
        ["NEXTCLICK_BUCKETS"],
        ["NEXTCLICK_WIDTH", "NEXTCLICK_HEADS"],
        ["NEXTCLICK_USERS_HELD", "NEXTCLICK_MICRO_BATCH_MAX"],
        ["NEXTCLICK_ONLINE_HISTORY", "NEXTCLICK_HISTORY_MAX"],
    ]


def test_a_variable_that_does_not_exist_is_named_with_what_was_meant(monkeypatch):
    monkeypatch.setenv("NEXTCLICK_LERNING_RATE", "0.1")
    monkeypatch.setenv("NEXTCLICK_XYZZY", "1")
    monkeypatch.setenv("NEXTCLICK_WIDTH", "-3")
    assert problems() == [
        "NEXTCLICK_LERNING_RATE: there is no such setting; did you mean NEXTCLICK_LEARNING_RATE?",
        "NEXTCLICK_XYZZY: there is no such setting",
        "NEXTCLICK_WIDTH: Input should be greater than 0",
    ]


def test_settings_are_frozen():
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.width = 64


def test_the_password_in_the_redis_url_is_never_shown(monkeypatch):
    monkeypatch.setenv("NEXTCLICK_REDIS_URL", "redis://user:hunter2@host:6379/0")
    assert "hunter2" not in repr(load_settings())
    assert "hunter2" not in str(load_settings())
    monkeypatch.setenv("NEXTCLICK_WIDTH", "0")
    assert "hunter2" not in "".join(problems())


def test_every_setting_says_what_it_is():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_an_unknown_override_is_an_error_too():
    assert problems(widht=3) == ["NEXTCLICK_WIDHT: Extra inputs are not permitted"]


def test_settings_that_do_not_fit_together_are_listed_beside_those_that_are_wrong_by_themselves(monkeypatch):
    monkeypatch.setenv("NEXTCLICK_LIST_SIZE", "0")
    monkeypatch.setenv("NEXTCLICK_WIDTH", "33")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    lines = str(refused.value).splitlines()[1:]
    assert [line.strip().split()[0].rstrip(":") for line in lines] == ["NEXTCLICK_LIST_SIZE", "NEXTCLICK_WIDTH"]
