"""The worker's loop: batches, checkpoints, and what it does when it falls behind."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Rate, Seconds, setting


class LoopSettings(BaseSettings):
    """Batches, checkpoints and overload."""

    poll_records_max: Positive = setting(256, "Messages that are taken from the broker at a time.")
    poll_timeout_s: Seconds = setting(0.05, "Longest wait for a first message.")
    merge_wait_s: Seconds = setting(
        1.0,
        "Longest wait for a partition that has more messages, before later clicks of other partitions are taken. "
        "0: no wait.",
    )
    micro_batch_max: Positive = setting(
        128, "Clicks that are learned together at most.", "Lower values make each list fresher and cost throughput."
    )
    step_clicks: Positive = setting(
        32,
        "Clicks of a micro-batch that the ranker learns in one step.",
        "Lower values improve lists slightly and cost throughput.",
    )
    checkpoint_interval_s: Seconds = setting(
        15.0, "Time between two checkpoints.", "After a crash, this much has to be learned again at most."
    )
    checkpoints_kept: Positive = setting(3, "Latest checkpoints that are kept on disk.")
    checkpoint_increments_max: Annotated[int, Field(ge=0)] = setting(
        100,
        "Checkpoints in a row that hold only what has changed since the latest full one. 0: each is a full one.",
        "A full one is written earlier once those since take more bytes than it.",
    )
    checkpoint_compression: Annotated[int, Field(ge=1, le=19)] = setting(
        1, "Level of zstd with which checkpoints are compressed.", "Higher levels cost much time and save little space."
    )
    checkpoint_in_copy: bool = setting(
        True,
        "Whether a copy of the process (fork) writes large checkpoints, so that clicks do not wait for it. On Linux, "
        "with the weights on the CPU.",
        "The copy needs memory for what the worker changes meanwhile.",
    )
    forget_checkpoints_s: Seconds = setting(
        30.0,
        "Time within which checkpoints that still hold a forgotten user are deleted, once a newer one exists.",
    )
    overload: Literal["fall-behind", "shed-training"] = setting(
        "fall-behind",
        "What the worker does when it is far behind: it learns every click and falls behind, or it leaves out training "
        "until it has caught up.",
        "Choose shed-training where fresh lists matter more than a better model.",
    )
    lag_told_s: Seconds = setting(
        30.0, "Waiting time of the oldest unread click at which a notice is emitted. 0: never."
    )
    shed_lag_s: Rate = setting(
        10.0, "Waiting time of the oldest unread click at which training is left out under shed-training."
    )
    lag_over_s: Seconds = setting(
        2.0, "The worker has caught up when the oldest unread click waits no longer than this."
    )
