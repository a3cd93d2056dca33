"""Several workers that learn one model."""

from pydantic import Field
from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Rate, setting


class GroupSettings(BaseSettings):
    """Rounds in which the workers of a group share their weights, and checkpoints that new ones start from."""

    round_s: Rate = setting(
        5.0,
        "Time after which a worker of a group publishes what its weights have learned.",
        "Lower values bring workers' weights closer together and cost bandwidth.",
    )
    round_clicks: Positive = setting(1_000, "Clicks trained after which it does so earlier.")
    group_warm_up_clicks: int = setting(
        20_000,
        "First clicks of a stream that every worker of a group learns from: what is learned fastest is not averaged.",
        ge=0,
    )
    shared_checkpoints: str | None = Field(
        None,
        description="Folder or object store that new workers of a group copy a checkpoint from, as a path or a URL, "
        "such as s3://bucket/folder. Unset: only the folders of other workers in the same NEXTCLICK_DATA_DIR.",
        json_schema_extra={"advice": "Set it where workers run on several machines."},
    )
    shared_checkpoint_interval_s: Rate = setting(
        600.0, "Time between two checkpoints that the leader copies to the shared folder."
    )
