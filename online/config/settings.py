"""Every setting of nextclick: one frozen model, read from the environment, validated once.

A field `users_held` is set by the environment variable `NEXTCLICK_USERS_HELD`, or by a line `NEXTCLICK_USERS_HELD=...`
of the file that `NEXTCLICK_ENV_FILE` names, or by a file `nextclick_users_held` (whatever the case) of the folder that
`NEXTCLICK_SECRETS_DIR` names, as docker and Kubernetes hand out secrets. The first of them that has it wins. Units come
last in a name.
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from online.config.cron import cron_trigger
from online.config.data_folder import default_data_dir
from online.config.env_file import EnvFile, Names, SecretsDir
from online.config.gate_limits import BLOCKS_MIN, GateLimits
from online.config.security_settings import SecuritySettings
from stream.addresses import kafka_servers, redis_address
from stream.click_fields import ClickFields, pairs_in
from stream.events import Limits

PREFIX = "NEXTCLICK_"
ENV_FILE = "NEXTCLICK_ENV_FILE"  # names a file of settings; no setting itself
SECRETS_DIR = "NEXTCLICK_SECRETS_DIR"  # names a folder of files with a setting each; likewise

Positive = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
}


class SettingsError(Exception):
    """Settings that cannot be used; the message has one line for each of them, with the variable's name."""


class Settings(SecuritySettings):
    """What can be set, with defaults that run everything on embedded parts, in a folder of this user's."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    # The edges. Without a broker or a Redis, the embedded parts stand in.
    kafka_bootstrap_servers: str | None = Field(None, description="host:port[,host:port]; unset: the embedded log")
    redis_url: SecretStr | None = Field(None, description="redis://host:port/0; unset: the embedded Redis")
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="folder of the checkpoints and of the embedded log; unset: the user's, ~/.local/share/nextclick",
    )
    clicks_topic: str = Field("clicks", min_length=1, description="topic the clicks come from")
    items_topic: str = Field("items", min_length=1, description="compacted topic that says which items are available")
    dead_letters_topic: str = Field("clicks.dead", min_length=1, description="topic for what could not be read")
    events_topic: str = Field("nextclick.events", min_length=1, description="topic for what happened to the model")
    consumer_group: str = Field("nextclick", min_length=1, description="Kafka consumer group of the worker")
    topic_partitions: Positive = Field(4, description="partitions of a Kafka topic that nextclick has to create")
    log_records_max: Positive = Field(5_000_000, description="embedded log: messages kept in a partition")
    embedded_redis_port: Port = Field(6390, description="port of the embedded Redis on 127.0.0.1")
    message_bytes_max: Positive = Field(65_536, description="larger messages are dead letters")
    future_s_max: Seconds = Field(86_400.0, description="a click further ahead of the clock is a dead letter")
    click_fields: str = Field(
        "",
        description="where fields of a click stand in others' messages: user_id=user.id,timestamp=ts; empty: as ours",
    )
    unreadable_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="of the latest messages of a topic, at which a notice says that they cannot be read; 0: never"
    )
    unreadable_messages: Annotated[int, Field(ge=2)] = Field(1_000, description="these latest messages, at most")
    internal_errors_in_a_row_max: Positive = Field(
        10, description="events in a row that our own code fails on, at which the worker stops"
    )
    offsets_gone: Literal["earliest", "stop"] = Field(
        "earliest", description="messages are gone before they were read: go on from the earliest there is, or stop"
    )
    items_records_max: Positive = Field(500, description="records of the items topic taken after each micro-batch")
    items_interval_s: Rate = Field(1.0, description="time between two looks at the items topic")
    event_ids_held: Positive = Field(200_000, description="latest event ids remembered to recognise redelivery")
    create_topics: bool = Field(True, description="false: others make the topics; the worker waits for them")
    retry_s_min: Rate = Field(0.5, description="first wait before a broker or a Redis that is away is asked again")
    retry_s_max: Rate = Field(5.0, description="longest of these waits, unless an attempt takes long itself")

    # The lists.
    list_size: Annotated[int, Field(ge=1, le=1_000)] = Field(50, description="items in a list")
    list_ttl_s: Positive = Field(5 * 86_400, description="a list that is not renewed gives way to the popular one")
    exclude_seen: bool = Field(False, description="leave out what the person has clicked already")

    # The loop.
    poll_records_max: Positive = Field(256, description="messages taken from the broker at a time")
    poll_timeout_s: Seconds = Field(0.05, description="longest wait for a first message")
    merge_wait_s: Seconds = Field(
        1.0,
        description="longest wait for a partition that has more, before later clicks of others are taken; 0: none",
    )
    micro_batch_max: Positive = Field(128, description="clicks learned in one go, at most")
    step_clicks: Positive = Field(32, description="of these, clicks that the ranker learns in one step")
    checkpoint_interval_s: Seconds = Field(15.0, description="time between checkpoints")
    checkpoints_kept: Positive = Field(3, description="checkpoints kept on disk")
    forget_checkpoints_s: Seconds = Field(
        30.0, description="time in which checkpoints go that know somebody who was forgotten, once one is without them"
    )
    sweep_lists_max: Positive = Field(
        2_000, description="lists looked at after each micro-batch, by the thousand, for items that are not available"
    )
    refresh_ages_s: Annotated[tuple[Rate, ...], NoDecode] = Field(
        (
            *(1_200.0, 3_600.0, 10_800.0, 28_800.0, 57_600.0, 79_200.0, 100_800.0, 129_600.0),
            *(172_800.0, 259_200.0, 345_600.0, 518_400.0, 691_200.0, 864_000.0),
        ),
        description="comma-separated, rising: ages at which a list is ranked anew without a click; none: never",
    )
    refresh_share_min: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1,
        description="an age is left out while fewer of the lists that reach it are looked at before the next",
    )
    refreshes_max: Rate = Field(6.0, description="refreshes of a list on average; the ages least worth it are left out")
    expected_views_max: Positive = Field(
        3, description="moments that a list is ranked for where it will be looked at within hours or days"
    )
    refresh_interval_s: Rate = Field(1.0, description="time between two looks for lists that have aged")
    refresh_lists_max: Positive = Field(
        64, description="lists ranked anew in one turn while Redis is behind; of those that have aged, after each look"
    )

    # More clicks than can be learned.
    overload: Literal["fall-behind", "shed-training"] = Field(
        "fall-behind", description="shed-training: while it is far behind, weights are not trained"
    )
    lag_told_s: Seconds = Field(30.0, description="a notice says when the oldest click waits for so long; 0: never")
    shed_lag_s: Rate = Field(10.0, description="training is left out when the oldest click waits for so long")
    lag_over_s: Seconds = Field(2.0, description="it has caught up when the oldest click waits no longer than this")

    # What is remembered.
    users_held: Positive = Field(100_000, description="users with a history; the least recently seen makes room")
    history_max: Annotated[int, Field(ge=2)] = Field(256, description="latest clicks kept of a user")
    seen_pairs_max: Positive = Field(
        20_000_000,
        description="users' different items remembered for EXCLUDE_SEEN, of all users together (3 to 5 bytes each for "
        "users with hundreds, 21 with 20); the least recently seen user makes room",
    )
    items_held: Positive = Field(200_000, description="items with a row; the least recently clicked makes room")
    item_min_count: Positive = Field(1, description="clicks after which an item gets a row")
    item_idle_s_max: Seconds = Field(180 * 86_400.0, description="an item without clicks for so long loses its row")
    successors_held: Positive = Field(64, description="followers counted for each item (the heaviest)")
    neighbours_held: Positive = Field(128, description="what stands near each item within some clicks (the heaviest)")
    popularity_half_lives: Annotated[tuple[Positive, ...], NoDecode] = Field(
        (30, 300, 3_000, 30_000), min_length=1, description="comma-separated: clicks after which a click counts half"
    )
    moments_held: Positive = Field(1_000_000, description="latest moments of everybody that recall can find")
    recall_latest: Positive = Field(64, description="latest moments of a person that are always compared")
    recall_users_held: Positive = Field(2_048, description="people whose older moments are remembered too")
    recall_buckets: Positive = Field(16, description="LSH buckets of a person's older moments (even)")
    recall_ring: Positive = Field(32, description="moments in one of these buckets")
    recall_probes: Positive = Field(2, description="buckets looked into")
    world_buckets: Positive = Field(4_096, description="LSH buckets of everybody's moments (even)")
    world_ring: Positive = Field(128, description="moments in one of these")

    # The network.
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    threads: Positive = Field(1, description="CPU threads of torch")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the network's products; auto: bfloat16 on CUDA, float32 on the CPU, where it is faster"
    )
    seed: int = Field(0, description="seed of everything drawn by chance")
    reformer: bool = Field(True, description="false: neither recall nor deep state, to see what they add")
    deep_state: bool = Field(True, description="false: recall without the network's state, to see what that adds")
    layers: Annotated[tuple[Literal["local", "lsh"], ...], NoDecode] = Field(
        ("local", "lsh"), min_length=1, description="comma-separated, from the bottom: local or lsh"
    )
    width: Positive = Field(32, description="width of item vectors and states")
    heads: Positive = Field(2, description="attention heads")
    rounds: Positive = Field(2, description="rounds of hashing")
    buckets: Positive = Field(8, description="LSH buckets (even)")
    window: Annotated[int, Field(ge=2)] = Field(16, description="positions seen in a bucket or locally")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout while fine-tuning")
    online_history: Annotated[int, Field(ge=2)] = Field(32, description="latest clicks read of who has no memory")
    memory_users_held: Positive = Field(2_048, description="users whose attention is continued from memory")
    memory_dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of keys and values kept")
    memory_updates_max: Positive = Field(10_000, description="updates of the weights before a memory is rebuilt")
    memory_rebuilds_max: Positive = Field(4, description="memories rebuilt from histories in one turn")

    # Learning.
    learning_rate: Rate = Field(0.002, description="of the network's dense weights, online")
    item_learning_rate: Rate = Field(0.1, description="of the item vectors (row-wise Adagrad)")
    ranker_learning_rate: Rate = Field(0.003, description="of the ranker's weights (Adam)")
    ranker_hidden: Positive = Field(64, description="hidden units of one of the ranker's networks")
    ranker_networks: Positive = Field(1, description="networks whose mean the ranker takes")
    candidates_kept: Annotated[int, Field(ge=2)] = Field(
        32, description="candidates, the best by a linear score, that the ranker's networks see"
    )
    ranker_gradient_norm_max: Rate = Field(5.0, description="the ranker's gradients are clipped to this norm")
    recall_learning_rate: Rate = Field(0.01, description="of recall's gains and recency weights (Adam)")
    recall_vectors_learning_rate: Rate = Field(0.01, description="of recall's item vectors (row-wise Adagrad)")
    replay_held: Annotated[int, Field(ge=0)] = Field(8_192, description="clicks kept to be learned from again")
    replay_candidates: Annotated[int, Field(ge=2)] = Field(32, description="candidates kept of each of them")
    replay_batch: Annotated[int, Field(ge=0)] = Field(32, description="of them learned with each step")
    negatives: Positive = Field(128, description="sampled items a next-item loss is measured against")
    gradient_norm_max: Rate = Field(1.0, description="gradients are clipped to this norm")
    gradient_explosion: Annotated[float, Field(gt=1)] = Field(
        50.0, description="a step whose gradients' norm is so many times its running level is not taken"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="of the dense weights")
    warm_up_steps: Annotated[int, Field(ge=0)] = Field(50, description="steps in which the learning rates rise")
    learning_rate_half_life_steps: Positive = Field(20_000, description="steps in which they come half way down to 0.3")
    finetune_interval_s: Seconds = Field(300.0, description="time between fine-tunings; 0: never by the clock")
    finetune_cron: str | None = Field(
        None, description="'minute hour day month weekday' in UTC: fine-tuning at these times too; unset: never"
    )
    finetune_jitter_s: Seconds = Field(0.0, description="fine-tuning is asked for up to so much earlier or later")
    finetune_histories: Positive = Field(512, description="histories read in one fine-tuning")
    finetune_recent_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="of them the latest people's; the others are a sample of all clicks so far"
    )
    finetune_recent_share_drift: Annotated[float, Field(ge=0, le=1)] = Field(
        0.9, description="the same, when a drift alarm has asked"
    )
    finetune_reservoir_held: Positive = Field(1_024, description="histories kept as a sample of all clicks so far")
    finetune_batch: Positive = Field(8, description="histories in one step of fine-tuning")
    finetune_learning_rate: Rate = Field(0.0005, description="of the dense weights, in fine-tuning")
    finetune_replays: Annotated[int, Field(ge=0)] = Field(
        1, description="steps of the ranker on replayed clicks with each step of fine-tuning"
    )
    finetune_ranker_learning_rate: Rate = Field(0.0003, description="of the ranker, in fine-tuning")
    finetune_slice_ms: Positive = Field(20, description="fine-tuning between two polls stops after this time")
    gate: bool = Field(True, description="false: what was fine-tuned is published without looking at it in the shadow")
    gate_alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.05, description="probability at most of publishing a candidate that is worse than the margin allows"
    )
    gate_margin: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.02, description="share of the live model's score that a candidate may lack"
    )
    gate_block_clicks: Positive = Field(25, description="clicks whose mean scores are one value for the gate")
    shadow_clicks_max: Positive = Field(5_000, description="clicks after which it is decided about a candidate")
    rollback_alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.01, description="probability at most of rolling back a live model that is as good as its predecessor"
    )
    rollback_margin: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.02, description="share of the live model's score by which its predecessor has to be better"
    )
    variety_lists: Positive = Field(256, description="latest lists whose variety is compared")
    variety_share_min: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="a model whose lists have less of the other's variety is given up at once"
    )
    versions_kept: Positive = Field(5, description="latest versions whose checkpoints stay, to be rolled back to")
    versions_listed: Positive = Field(20, description="latest versions that are told of")
    drift_delta: Annotated[float, Field(gt=0, lt=1)] = Field(0.0005, description="ADWIN's confidence; smaller: rarer")
    drift_tolerance: Annotated[float, Field(ge=0)] = Field(
        1.0, description="a rise that Page-Hinkley overlooks, in standard deviations of a value"
    )
    drift_threshold: Rate = Field(15.0, description="what rises beyond it must add up to for an alarm, likewise")
    drift_clicks_each: Positive = Field(25, description="clicks whose means are one value for the drift detectors")
    drift_values_held: Annotated[int, Field(ge=100)] = Field(2_000, description="values kept for each drift detector")
    drift_cooling_clicks: Annotated[int, Field(ge=0)] = Field(
        2_000, description="clicks after an alarm in which what is found counts as the same change"
    )
    drift_types_max: Annotated[int, Field(ge=0)] = Field(
        4, description="event types that are watched each by itself; the others share"
    )
    reaction_clicks: Annotated[int, Field(ge=0)] = Field(
        3_000, description="clicks after a drift alarm in which there is more to learn; 0: no reaction"
    )
    reaction_learning_rate_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        2.0, description="what learning rates are multiplied by at its beginning; falls back to 1; 1: not"
    )
    reaction_counts_kept: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="what a click counted so far still counts when it begins; 1: as before"
    )
    reaction_replay_kept: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the clicks to be learned from again that are kept then; 1: all"
    )
    outage_share: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.2, description="of the expected click rate, below which clicks are taken to be missing"
    )
    outage_clicks: Positive = Field(200, description="clicks whose time tells the rate")

    # The guard.
    abuse_filter: bool = Field(True, description="false: clicks are learned from however many somebody makes")
    abuse_clicks_at_once: Positive = Field(120, description="clicks of a person at once that others' lists learn from")
    abuse_clicks_per_minute: Rate = Field(20.0, description="the same, for longer")
    abuse_repeats_at_once: Annotated[int, Field(ge=2)] = Field(
        5, description="clicks of a person on one item at once that others' lists learn from"
    )
    abuse_repeats_interval_s: Rate = Field(300.0, description="time after which they learn from one more of these")
    abuse_late_s: Seconds = Field(
        86_400.0,
        description="a click counts as made at most so long before a quarter of the latest users' clicks",
    )
    abuse_keys_held: Positive = Field(131_072, description="people, items, and pairs of both whose clicks are watched")
    abuse_share_max: Annotated[float, Field(gt=0, le=1)] = Field(
        0.05, description="share of the latest clicks that may be flagged as abuse; more, of many users, is a misfit"
    )
    abuse_share_exceeded: Literal["let-through", "keep-out"] = Field(
        "let-through", description="what becomes of flagged clicks while more than that share is flagged"
    )

    # What a person sees.
    api_host: str = Field("127.0.0.1", description="address the API listens on")
    api_port: Port = Field(8000, description="port of the API")
    notices_held: Positive = Field(20, description="latest notices shown by status and dashboard")
    notices_waiting_max: Positive = Field(1_000, description="notices kept for a broker that is away")
    status_interval_s: Seconds = Field(1.0, description="time between two reports of the worker about itself")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")

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

    @field_validator("layers", "refresh_ages_s", "popularity_half_lives", mode="before")
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
        problems = []
        for name in ("recall_buckets", "world_buckets"):
            if getattr(self, name) % 2:
                problems.append(f"{PREFIX}{name.upper()} must be even, not {getattr(self, name)}")
        if self.buckets % 2:
            problems.append(
                f"NEXTCLICK_BUCKETS must be even (each rotation gives a bucket and its opposite), not {self.buckets}"
            )
        if self.width % self.heads:
            problems.append(f"NEXTCLICK_WIDTH ({self.width}) must be a multiple of NEXTCLICK_HEADS ({self.heads})")
        for name in ("users_held", "memory_users_held", "recall_users_held", "moments_held"):
            if getattr(self, name) < self.micro_batch_max:
                problems.append(
                    f"{PREFIX}{name.upper()} ({getattr(self, name)}) must not be below "
                    f"NEXTCLICK_MICRO_BATCH_MAX ({self.micro_batch_max})"
                )
        if self.online_history > self.history_max:
            problems.append(
                f"NEXTCLICK_ONLINE_HISTORY ({self.online_history}) must not exceed "
                f"NEXTCLICK_HISTORY_MAX ({self.history_max})"
            )
        if self.shadow_clicks_max < BLOCKS_MIN * self.gate_block_clicks:
            problems.append(
                f"NEXTCLICK_SHADOW_CLICKS_MAX ({self.shadow_clicks_max}) must not be below {BLOCKS_MIN} times "
                f"NEXTCLICK_GATE_BLOCK_CLICKS ({self.gate_block_clicks})"
            )
        for name in ("lag_told_s", "shed_lag_s"):
            if 0 < getattr(self, name) <= self.lag_over_s:
                problems.append(
                    f"{PREFIX}{name.upper()} ({getattr(self, name):g}) must exceed "
                    f"NEXTCLICK_LAG_OVER_S ({self.lag_over_s:g})"
                )
        for high, low in (("retry_s_max", "retry_s_min"), ("versions_listed", "versions_kept")):
            problems += self._not_below(high, low)
        problems += self._security_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _not_below(self, high: str, low: str) -> list[str]:
        """What is wrong where one setting is below another."""
        if getattr(self, high) >= getattr(self, low):
            return []
        return [
            f"{PREFIX}{high.upper()} ({getattr(self, high):g}) must not be below "
            f"{PREFIX}{low.upper()} ({getattr(self, low):g})"
        ]

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
    def rollback_gate(self) -> GateLimits:
        """What the live model's predecessor has to pass, as the candidate, to take its place again."""
        return GateLimits(self.rollback_alpha, -self.rollback_margin, self.gate_block_clicks, self.shadow_clicks_max)

    @property
    def checkpoints_dir(self) -> Path:
        return self.data_dir / "checkpoints"


def load_settings(**overrides: Any) -> Settings:
    """Settings from `NEXTCLICK_*` variables, then from the file `NEXTCLICK_ENV_FILE`, then from the files in
    `NEXTCLICK_SECRETS_DIR`; `overrides` win over all.

    Raises:
        SettingsError: with one line for every wrong or unknown variable, all of them at once.
    """
    names = Names(PREFIX, (ENV_FILE, SECRETS_DIR), Settings.model_fields, RENAMED)
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
