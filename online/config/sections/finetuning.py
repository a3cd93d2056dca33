"""Fine-tuning, and which models are published or rolled back."""

import shlex
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Rate, Seconds, Share, fixed, setting


class FinetuningSettings(BaseSettings):
    """Fine-tuning, shadow evaluation and versions."""

    finetune_interval_s: Seconds = setting(300.0, "Time between two fine-tunings. 0: never by the clock.")
    finetune_cron: str | None = setting(
        None,
        "Times of day, in UTC, at which fine-tuning starts as well, as 'minute hour day month weekday'. Unset: never.",
    )
    finetune_jitter_s: Seconds = setting(
        0.0,
        "Largest random shift of the start of a fine-tuning, earlier or later.",
        "Set it where several workers share a machine.",
    )
    finetune_histories: Positive = setting(512, "Histories that one fine-tuning reads.")
    finetune_recent_share: Share = setting(
        0.5, "Share of these that belong to the latest users. The others are a sample of all clicks so far."
    )
    finetune_recent_share_drift: Share = setting(0.9, "The same share, where a drift alarm started the fine-tuning.")
    finetune_reservoir_held: Positive = setting(1_024, "Histories that are kept as a sample of all clicks so far.")
    finetune_batch: Positive = fixed(8, "Histories in one step of fine-tuning.")
    finetune_learning_rate: Rate = setting(0.0005, "Learning rate of the dense weights in fine-tuning.")
    finetune_replays: Annotated[int, Field(ge=0)] = setting(
        1, "Steps of the ranker on kept clicks with each step of fine-tuning."
    )
    finetune_ranker_learning_rate: Rate = setting(0.0003, "Learning rate of the ranker in fine-tuning.")
    finetune_cpu_share: Annotated[float, Field(gt=0, le=1)] = setting(
        1.0,
        "Share of the worker's time that fine-tuning in the worker may take. Clicks come first even at 1.",
        "Lower it where the machine has other work.",
    )
    finetune_slice_ms: Positive = fixed(20, "Longest time that fine-tuning takes between two polls.")
    finetune_processes: Annotated[int, Field(ge=0, le=1_024)] = setting(
        0,
        "Processes outside the worker, on the same machine, in which fine-tuning runs. 0: it runs in the worker.",
        "1 takes the work away from the worker. More are for GPUs, and for networks much larger than the default.",
    )
    finetune_command: str | None = setting(
        None,
        "Command that starts these processes instead, on several machines for example. `{folder}` in it stands for the "
        "folder of the job, which all of them must see, and `{processes}` for their number. No shell reads it.",
    )
    finetune_timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = setting(
        1_800.0, "Time after which a fine-tuning outside the worker is ended."
    )
    gate: bool = setting(
        True,
        "Whether a fine-tuned candidate is compared with the live model before it is published.",
        "Leave it on: without it every fine-tuned model is published.",
    )
    gate_alpha: Annotated[float, Field(gt=0, lt=0.5)] = setting(
        0.05, "Highest probability of publishing a candidate that is worse than the margin allows."
    )
    gate_margin: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.02, "Share of the live model's score that a candidate may lack and still be published."
    )
    state_worth_min: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.01,
        "Share of the lists' score that the network's state has to add to be used. Where a model without it is shown "
        "to lose less, that one takes over, and learns a click in less time. 0: the state is always used.",
        "Set it to 0 where lists matter more than the time of a click.",
    )
    state_trial_clicks: Positive = setting(
        50_000, "Clicks after which it is first measured what the state adds; then after twice as many, and so on."
    )
    gate_block_clicks: Positive = fixed(25, "Clicks whose mean score is one value for the gate.")
    shadow_clicks_max: Positive = setting(5_000, "Clicks after which a candidate is decided on at the latest.")
    rollback_alpha: Annotated[float, Field(gt=0, lt=0.5)] = setting(
        0.01, "Highest probability of rolling back a live model that is as good as its predecessor."
    )
    rollback_margin: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.02, "Share of the live model's score by which its predecessor must be better for a rollback."
    )
    diversity_lists: Positive = fixed(256, "Latest lists over which the diversity of two models is compared.")
    diversity_share_min: Annotated[float, Field(ge=0, lt=1)] = fixed(
        0.25, "A candidate is rejected at once where its lists have less than this share of the live model's diversity."
    )
    versions_kept: Positive = setting(
        5, "Latest versions whose checkpoints are kept, so that they can be rolled back to."
    )
    versions_listed: Positive = fixed(20, "Latest versions that are listed.")

    @field_validator("finetune_command")
    @classmethod
    def _names_the_folder(cls, value: str | None) -> str | None:
        if value is not None and not any("{folder}" in word for word in shlex.split(value)):
            raise ValueError("has to name {folder}, the folder of the job")
        return value
