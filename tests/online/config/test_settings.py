"""Settings are checked once, all of them, and a mistake is named with the variable that has it."""

import pytest
from pydantic import SecretStr, ValidationError

from online.config.settings import (
    PREFIX,
    RENAMED,
    SECTIONS,
    Settings,
    SettingsError,
    fixed_values,
    load_settings,
    settable,
)


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


def test_gates_and_versions_have_to_fit_their_limits():
    lines = problems(shadow_clicks_max=100, gate_block_clicks=25, versions_kept=30)
    assert lines == [
        "NEXTCLICK_SHADOW_CLICKS_MAX (100) must not be below 250",
        "NEXTCLICK_VERSIONS_KEPT (30) must not exceed 20",
    ]
    settings = load_settings(gate_margin=0.03, rollback_margin=0.04)
    assert (settings.candidate_gate.margin, settings.rollback_gate.margin) == (0.03, -0.04)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("userid=a", "a click has no field 'userid'; it has user_id, item_id, timestamp, event_type, event_id, value"),
        ("user_id=a,user=b", "user_id is given twice: 'a' and 'b'"),
        ("user_id=", "'user_id=' is no pair of a field and where it stands, as in user_id=user.id"),
        ("user.id", "'user.id' is no pair of a field and where it stands, as in user_id=user.id"),
    ],
)
def test_names_of_fields_that_cannot_be_meant_are_one_line(monkeypatch, value, line):
    monkeypatch.setenv("NEXTCLICK_CLICK_FIELDS", value)
    assert problems() == [f"NEXTCLICK_CLICK_FIELDS: {line}"]


def test_names_of_fields_are_read(monkeypatch):
    assert not load_settings().click_names
    monkeypatch.setenv("NEXTCLICK_CLICK_FIELDS", " user=user.id , timestamp=ts")
    assert load_settings().click_names.paths == {"user_id": "user.id", "timestamp": "ts"}


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


def test_ages_of_lists_are_separated_by_commas_and_none_means_never(monkeypatch):
    for text, ages in {"60": (60.0,), "60, 3600.5": (60.0, 3_600.5), "none": ()}.items():
        monkeypatch.setenv("NEXTCLICK_REFRESH_AGES_S", text)
        assert load_settings().refresh_ages_s == ages
    for text in ("60,60", "3600,60", "0,60", "-1", "soon", "60,inf"):
        monkeypatch.setenv("NEXTCLICK_REFRESH_AGES_S", text)
        assert all(line.startswith("NEXTCLICK_REFRESH_AGES_S: ") for line in problems()), text


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


def test_settings_that_contradict_each_other_are_listed_beside_invalid_ones(monkeypatch):
    monkeypatch.setenv("NEXTCLICK_LIST_SIZE", "0")
    monkeypatch.setenv("NEXTCLICK_WIDTH", "33")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    lines = str(refused.value).splitlines()[1:]
    assert [line.strip().split()[0].rstrip(":") for line in lines] == ["NEXTCLICK_LIST_SIZE", "NEXTCLICK_WIDTH"]


@pytest.fixture
def env_file(monkeypatch, tmp_path):
    """Writes the file of settings that is read."""
    path = tmp_path / "tuned.env"
    monkeypatch.setenv("NEXTCLICK_ENV_FILE", str(path))

    def write(text):
        path.write_text(text)
        return path

    return write


def test_a_file_of_settings_is_read_and_variables_and_overrides_win_over_it(monkeypatch, env_file):
    env_file(
        "# found\n\nNEXTCLICK_WIDTH=16  # narrow\nexport NEXTCLICK_LAYERS='lsh,local'\nNEXTCLICK_HEADS=1\n"
        "NEXTCLICK_BUCKETS=4\nNEXTCLICK_DROPOUT=\nNEXTCLICK_WINDOW=7\n"
    )
    monkeypatch.setenv("NEXTCLICK_HEADS", "8")
    monkeypatch.setenv("NEXTCLICK_WINDOW", "")  # empty is unset
    settings = load_settings(buckets=6)
    assert (settings.width, settings.layers, settings.heads, settings.buckets) == (16, ("lsh", "local"), 8, 6)
    assert (settings.dropout, settings.window) == (Settings.model_fields["dropout"].get_default(), 7)


def test_a_file_of_settings_that_cannot_be_read_is_one_line(monkeypatch, env_file, tmp_path):
    missing = tmp_path / "tuned.env"
    assert problems() == [f"NEXTCLICK_ENV_FILE: {missing} cannot be read: No such file or directory"]
    env_file("").write_bytes(b"NEXTCLICK_WIDTH=\xff")
    assert problems() == [f"NEXTCLICK_ENV_FILE: {missing} cannot be read: it is not text in UTF-8"]
    monkeypatch.setenv("NEXTCLICK_ENV_FILE", str(tmp_path))
    assert problems() == [f"NEXTCLICK_ENV_FILE: {tmp_path} cannot be read: Is a directory"]


def test_what_is_wrong_in_a_file_of_settings_is_listed_with_the_rest(monkeypatch, env_file):
    path = env_file(
        "NEXTCLICK_LERNING_RATE=0.1\n\n\nlearning rate = 3\nNEXTCLICK_HEADS\nAPI_PORT=80\n"
        "NEXTCLICK_WIDTH=wide\nNEXTCLICK_ROUNDS=0\n"
    )
    monkeypatch.setenv("NEXTCLICK_ROUNDS", "-1")
    monkeypatch.setenv("NEXTCLICK_XYZZY", "1")
    assert problems(buckets=5) == [
        "NEXTCLICK_XYZZY: there is no such setting",
        f"{path} line 1: NEXTCLICK_LERNING_RATE: there is no such setting; did you mean NEXTCLICK_LEARNING_RATE?",
        f"{path} line 4: not NEXTCLICK_NAME=value",
        f"{path} line 5: not NEXTCLICK_NAME=value",
        f"{path} line 6: API_PORT: there is no such setting; did you mean NEXTCLICK_API_PORT?",
        f"{path}: NEXTCLICK_WIDTH: Input should be a valid integer, unable to parse string as an integer",
        "NEXTCLICK_ROUNDS: Input should be greater than 0",
        "NEXTCLICK_BUCKETS must be even (each rotation gives a bucket and its opposite), not 5",
    ]


@pytest.mark.parametrize("name", settable())
def test_every_setting_can_stand_in_a_file(env_file, tmp_path, name):
    default = Settings.model_fields[name].get_default(call_default_factory=True)
    given = {"finetune_cron": "0 3 * * mon", "kafka_bootstrap_servers": "host:9092", "redis_url": "redis://host/0"}
    given |= {"finetune_command": "srun job {folder}", "list_filter": "price <= 20", "api_requests_per_s": 7.0}
    default = given.get(name, "0") if default is None else default
    if "_ssl_" in name and name.endswith("file"):
        default = tmp_path / "some.pem"
        default.touch()
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    needed = {
        "kafka_sasl": {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_username": "u", "kafka_sasl_password": "p"},
        "kafka_ssl": {"kafka_security_protocol": "SSL", "kafka_ssl_certfile": __file__},
        "redis_sentinel": {"redis_url": "redis+sentinel://host/lists", "redis_sentinel_password": "p"},
        "redis_user": {"redis_url": "redis://host", "redis_password": "p"},
        "redis_ssl": {"redis_url": "rediss://host", "redis_ssl_certfile": __file__},
    }
    lines = next((dict(more) for prefix, more in needed.items() if name.startswith(prefix)), {}) | {name: text}
    env_file("".join(f"NEXTCLICK_{field.upper()}={value}\n" for field, value in lines.items()))
    found = getattr(load_settings(), name)
    assert (found.get_secret_value() if isinstance(found, SecretStr) else found) == default


def test_an_empty_name_of_a_file_of_settings_is_none(monkeypatch):
    monkeypatch.setenv("NEXTCLICK_ENV_FILE", "")
    assert load_settings() == Settings()


@pytest.mark.parametrize("name", fixed_values())
def test_a_fixed_value_is_set_by_code_alone_and_refused_elsewhere(monkeypatch, env_file, tmp_path, name):
    value = fixed_values()[name]
    line = f"{PREFIX}{name.upper()} is no setting any more: its value is fixed at {value}"
    env_file("")
    assert getattr(load_settings(**{name: 2 * value}), name) == 2 * value
    path = env_file(f"{PREFIX}{name.upper()}=2\n")
    assert problems() == [f"{path} line 1: {line}"]
    env_file("")
    monkeypatch.setenv(PREFIX + name.upper(), "2")
    assert problems() == [line]
    assert getattr(Settings(), name) == value  # a variable that is not refused, as it is not looked for, sets nothing
    monkeypatch.delenv(PREFIX + name.upper())
    (tmp_path / "secrets").mkdir()
    secret = tmp_path / "secrets" / f"nextclick_{name}"
    secret.write_text("2")
    monkeypatch.setenv("NEXTCLICK_SECRETS_DIR", str(secret.parent))
    assert problems() == [f"{secret}: {PREFIX}{name.upper()} is no setting any more: its value is fixed at {value}"]


def test_a_name_of_before_is_refused_with_what_became_of_it(monkeypatch):
    monkeypatch.setenv("NEXTCLICK_OFFSETS_GONE", "stop")
    monkeypatch.setenv("NEXTCLICK_VARIETY_LISTS", "8")
    assert problems() == [
        "NEXTCLICK_OFFSETS_GONE is called NEXTCLICK_OFFSET_OUT_OF_RANGE now: rename it",
        "NEXTCLICK_VARIETY_LISTS is no setting any more: its value is fixed at 256",
    ]
    assert set(RENAMED.values()) <= set(Settings.model_fields)


def test_each_setting_belongs_to_one_subject():
    names = [name for section in SECTIONS for name in section.model_fields]
    assert names == list(Settings.model_fields)


def test_a_filter_that_cannot_be_read_is_refused_with_the_place(monkeypatch):
    monkeypatch.setenv("NEXTCLICK_LIST_FILTER", "price <= 20 and")
    with pytest.raises(SettingsError) as error:
        load_settings()
    expected = "expected an attribute, 'tags', 'available', 'missing', 'not' or '(', found the end"
    assert str(error.value).splitlines()[1:] == [f"  NEXTCLICK_LIST_FILTER: at character 16: {expected}"]
    monkeypatch.setenv("NEXTCLICK_LIST_FILTER", "price <= 20 and missing(withdrawn_at)")
    assert load_settings().list_filter == "price <= 20 and missing(withdrawn_at)"
