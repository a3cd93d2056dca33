"""Every setting of nextclick: one frozen model, read from the environment, validated once.

A field `users_held` is set by the environment variable `NEXTCLICK_USERS_HELD`, or by a line `NEXTCLICK_USERS_HELD=...`
of the file that `NEXTCLICK_ENV_FILE` names, or by a file `nextclick_users_held` (whatever the case) of the folder that
`NEXTCLICK_SECRETS_DIR` names, as docker and Kubernetes hand out secrets. The first of them that has it wins. Units come
last in a name. Fields are declared by subject in online/config/sections/; those declared as `fixed` are set by code
alone. docs/settings.md is made of this model (online/config/document.py).
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from online.config.cron import cron_trigger
from online.config.data_folder import CHECKPOINTS
from online.config.env_file import EnvFile, Names, SecretsDir
from online.config.event_weights import weights_in
from online.config.formula import FormulaError
from online.config.gate_limits import BLOCKS_MIN, GateLimits
from online.config.sections.abuse import AbuseSettings
from online.config.sections.api import ApiSettings
from online.config.sections.asking import AskingSettings
from online.config.sections.content import ContentSettings
from online.config.sections.drift import DriftSettings
from online.config.sections.fields import is_fixed
from online.config.sections.finetuning import FinetuningSettings
from online.config.sections.group import GroupSettings
from online.config.sections.learning import LearningSettings
from online.config.sections.lists import ListSettings
from online.config.sections.loop import LoopSettings
from online.config.sections.memory import MemorySettings
from online.config.sections.network import NetworkSettings
from online.config.sections.privacy import PrivacySettings
from online.config.sections.reports import ReportSettings
from online.config.sections.security import SecuritySettings
from online.config.sections.streams import StreamSettings
from online.config.sections.worth import WorthSettings
from online.filters.expression import parse
from stream.addresses import kafka_servers, redis_address
from stream.click_fields import ClickFields, pairs_in
from stream.events import Limits

PREFIX = "NEXTCLICK_"
ENV_FILE = "NEXTCLICK_ENV_FILE"  # names a file of settings; no setting itself
SECRETS_DIR = "NEXTCLICK_SECRETS_DIR"  # names a folder of files with a setting each; likewise

#: Settings by the names they had in 0.1.
RENAMED = {
    "guard": "abuse_filter",
    "guard_clicks_at_once": "abuse_clicks_at_once",
    "guard_clicks_per_minute": "abuse_clicks_per_minute",
    "guard_repeats_at_once": "abuse_repeats_at_once",
    "guard_repeats_interval_s": "abuse_repeats_interval_s",
    "guard_late_s": "abuse_late_s",
    "guard_held": "abuse_keys_held",
    "looks_max": "expected_views_max",
    "offsets_gone": "offset_out_of_range",
    "variety_lists": "diversity_lists",
    "variety_share_min": "diversity_share_min",
}

#: The subjects, in the order in which they are documented.
SECTIONS: tuple[type[BaseSettings], ...] = (
    StreamSettings,
    GroupSettings,
    SecuritySettings,
    ListSettings,
    LoopSettings,
    MemorySettings,
    NetworkSettings,
    LearningSettings,
    WorthSettings,
    ContentSettings,
    FinetuningSettings,
    PrivacySettings,
    DriftSettings,
    AbuseSettings,
    ReportSettings,
    ApiSettings,
    AskingSettings,
)


class SettingsError(Exception):
    """Settings that cannot be used; the message has one line for each of them, with the variable's name."""


class Settings(  # pydantic takes the fields of the last base first
    AskingSettings,
    ApiSettings,
    ReportSettings,
    AbuseSettings,
    DriftSettings,
    PrivacySettings,
    FinetuningSettings,
    ContentSettings,
    WorthSettings,
    LearningSettings,
    NetworkSettings,
    MemorySettings,
    LoopSettings,
    ListSettings,
    SecuritySettings,
    GroupSettings,
    StreamSettings,
):
    """What can be set, with defaults that run everything on embedded parts, in a folder of this user's."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - it is this class
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - files of settings are read by `EnvFile`
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[Any, ...]:
        """Code sets every field; variables and secrets set all but the fixed ones."""
        return init_settings, _without_fixed(env_settings), _without_fixed(file_secret_settings)

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            redis_address(value.get_secret_value())
        return value

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _are_kafka_servers(cls, value: str | None) -> str | None:
        return None if value is None else kafka_servers(value)

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        """So that messages say where it is, whichever folder one stands in."""
        try:
            return value.expanduser().absolute()
        except RuntimeError as error:  # ~ of a user without a home
            raise ValueError(str(error)) from error

    @field_validator("finetune_cron")
    @classmethod
    def _comes(cls, value: str | None) -> str | None:
        if value is not None:
            with contextlib.suppress(ImportError):  # the worker, which alone has a use for it, checks it
                cron_trigger(value)
        return value

    @field_validator("click_fields")
    @classmethod
    def _are_pairs(cls, value: str) -> str:
        if value.strip():
            pairs_in(value)
        return value

    @field_validator("list_filter")
    @classmethod
    def _is_filter(cls, value: str | None) -> str | None:
        if value is not None:
            parse(value)
        return value

    @field_validator("event_weights")
    @classmethod
    def _are_weights(cls, value: str) -> str:
        weights_in(value)
        return value

    @field_validator("layers", "refresh_ages_s", "popularity_half_lives", "features_left_out", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return () if value.strip() == "none" else tuple(part.strip() for part in value.split(","))

    @field_validator("refresh_ages_s")
    @classmethod
    def _ages_rise(cls, ages: tuple[float, ...]) -> tuple[float, ...]:
        if list(ages) != sorted(set(ages)):
            raise ValueError("ages must rise, each above the one before")
        return ages

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        problems = [*self._shape_problems(), *self._size_problems()]
        problems += [*self._security_problems(), *self._api_problems(), *self._objective_problems()]
        problems += [*self._privacy_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _shape_problems(self) -> Iterator[str]:
        for name in ("recall_buckets", "world_buckets"):
            if getattr(self, name) % 2:
                yield f"{PREFIX}{name.upper()} must be even, not {getattr(self, name)}"
        if self.buckets % 2:
            yield (
                f"NEXTCLICK_BUCKETS must be even (each rotation gives a bucket and its opposite), not {self.buckets}"
            )
        if self.width % self.heads:
            yield f"NEXTCLICK_WIDTH ({self.width}) must be a multiple of NEXTCLICK_HEADS ({self.heads})"

    def _size_problems(self) -> Iterator[str]:
        for name in ("users_held", "memory_users_held", "recall_users_held", "moments_held"):
            if getattr(self, name) < self.micro_batch_max:
                yield (
                    f"{PREFIX}{name.upper()} ({getattr(self, name)}) must not be below "
                    f"NEXTCLICK_MICRO_BATCH_MAX ({self.micro_batch_max})"
                )
        if self.online_history > self.history_max:
            yield (
                f"NEXTCLICK_ONLINE_HISTORY ({self.online_history}) must not exceed "
                f"NEXTCLICK_HISTORY_MAX ({self.history_max})"
            )
        if self.shadow_clicks_max < (least := BLOCKS_MIN * self.gate_block_clicks):
            yield f"NEXTCLICK_SHADOW_CLICKS_MAX ({self.shadow_clicks_max}) must not be below {least}"
        if self.versions_kept > self.versions_listed:
            yield f"NEXTCLICK_VERSIONS_KEPT ({self.versions_kept}) must not exceed {self.versions_listed}"
        for name in ("lag_told_s", "shed_lag_s"):
            if 0 < getattr(self, name) <= self.lag_over_s:
                yield (
                    f"{PREFIX}{name.upper()} ({getattr(self, name):g}) must exceed "
                    f"NEXTCLICK_LAG_OVER_S ({self.lag_over_s:g})"
                )
        if self.retry_s_max < self.retry_s_min:
            yield (
                f"NEXTCLICK_RETRY_S_MAX ({self.retry_s_max:g}) must not be below "
                f"NEXTCLICK_RETRY_S_MIN ({self.retry_s_min:g})"
            )

    def _objective_problems(self) -> Iterator[str]:
        try:
            self.formula()
        except FormulaError as error:
            yield f"NEXTCLICK_OBJECTIVE: {error}"

    @property
    def groups_users(self) -> bool:
        """Whether users are grouped: by what is known of them, or by when they come."""
        return self.users_topic is not None or self.popularity_by_hour

    @property
    def topics_beside(self) -> tuple[str, ...]:
        """The topics that a worker reads beside that of clicks."""
        optional = (self.users_topic, self.impressions_topic if self.learn_impressions else None)
        return (self.items_topic, self.feedback_topic, *(topic for topic in optional if topic is not None))

    @property
    def limits(self) -> Limits:
        """What of a message is read."""
        return Limits(message_bytes_max=self.message_bytes_max, future_s_max=self.future_s_max)

    @property
    def click_names(self) -> ClickFields:
        """Where in the messages of the clicks topic a click's fields stand."""
        return ClickFields(pairs_in(self.click_fields) if self.click_fields.strip() else {})

    @property
    def log_path(self) -> Path:
        return self.data_dir / "log.db"

    @property
    def candidate_gate(self) -> GateLimits:
        """What a candidate has to pass."""
        return GateLimits(self.gate_alpha, self.gate_margin, self.gate_block_clicks, self.shadow_clicks_max)

    @property
    def tries_state(self) -> bool:
        """Whether a worker measures what the network's state adds; in a group, all would have to change at once."""
        return self.gate and self.state_worth_min > 0 and self.workers == "one"

    def state_gate(self, *, uses_state: bool) -> GateLimits:
        """What a model has to pass that uses the network's state where the live one does not, or the reverse."""
        margin = -self.state_worth_min if uses_state else self.state_worth_min
        return GateLimits(self.gate_alpha, margin, self.gate_block_clicks, self.shadow_clicks_max)

    @property
    def rollback_gate(self) -> GateLimits:
        """What the live model's predecessor has to pass, as the candidate, to take its place again."""
        return GateLimits(self.rollback_alpha, -self.rollback_margin, self.gate_block_clicks, self.shadow_clicks_max)

    @property
    def checkpoints_dir(self) -> Path:
        return self.data_dir / CHECKPOINTS


def settable() -> dict[str, Any]:
    """The fields that a variable, a file of settings or a secret sets."""
    return {name: field for name, field in Settings.model_fields.items() if not is_fixed(field)}


def fixed_values() -> dict[str, Any]:
    """The fields that only code sets, with the values that they have otherwise."""
    return {name: field.get_default() for name, field in Settings.model_fields.items() if is_fixed(field)}


def _without_fixed(source: PydanticBaseSettingsSource) -> Callable[[], dict[str, Any]]:
    """What a source sets, without the fixed fields."""
    return lambda: {name: value for name, value in source().items() if name not in fixed_values()}


def load_settings(**overrides: Any) -> Settings:
    """Settings from `NEXTCLICK_*` variables, then from the file `NEXTCLICK_ENV_FILE`, then from the files in
    `NEXTCLICK_SECRETS_DIR`; `overrides` win over all.

    Raises:
        SettingsError: with one line for every wrong or unknown variable, all of them at once.
    """
    names = Names(PREFIX, (ENV_FILE, SECRETS_DIR), settable(), RENAMED, fixed_values())
    problems = [names.unknown(name) for name in sorted(os.environ) if name.startswith(PREFIX) and not names.known(name)]
    file = EnvFile(os.environ.get(ENV_FILE) or None, names)
    secrets = SecretsDir(os.environ.get(SECRETS_DIR) or None, SECRETS_DIR, names)
    problems += file.problems + secrets.problems
    given = {"_secrets_dir": secrets.path} | file.values() | overrides
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problems += _lines(error, file.values().keys() - overrides.keys(), file.name)
        # Whether settings fit together is only looked at once each is right by itself: so the wrong ones stand aside.
        wrong = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]} & set(Settings.model_fields)
        try:
            Settings(
                **given | {name: Settings.model_fields[name].get_default(call_default_factory=True) for name in wrong}
            )
        except ValidationError as others:
            problems += [line for line in _lines(others) if line not in problems]
        raise SettingsError(_report(problems)) from None
    if problems:
        raise SettingsError(_report(problems))
    return settings


def _lines(error: ValidationError, from_file: Collection[str] = (), file: str | None = None) -> list[str]:
    """What is wrong; `from_file` holds the fields whose values are the file's."""
    lines = []
    for detail in error.errors(include_url=False, include_input=False):
        # Without a place: settings that do not fit together, named in the message itself.
        field = str(detail["loc"][0]) if detail["loc"] else ""
        name = f"{PREFIX}{field.upper()}: " if field else ""
        name = f"{file}: {name}" if field in from_file else name
        lines += [name + line for line in detail["msg"].removeprefix("Value error, ").splitlines()]
    return lines


def _report(problems: list[str]) -> str:
    return "these settings cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems)
