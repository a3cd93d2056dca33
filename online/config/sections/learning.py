"""Learning from each click."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode

from online.config.sections.fields import Positive, Rate, fixed, setting

#: Those that can be left out; the network's and content's have settings of their own.
FeatureGroup = Literal[
    "followed", "near", "taste", "clicked", "popular", "age", "situation", "lift", "own_moments", "world_moments"
]


class LearningSettings(BaseSettings):
    """Learning online. `nextclick tune` searches the most important ones."""

    learning_rate: Rate = setting(0.002, "Learning rate of the network's dense weights.")
    item_learning_rate: Rate = setting(0.1, "Learning rate of the item vectors (row-wise Adagrad).")
    ranker_learning_rate: Rate = setting(0.003, "Learning rate of the ranker (Adam).")
    ranker_hidden: Positive = setting(64, "Hidden units of each of the ranker's networks.")
    ranker_networks: Positive = setting(1, "Networks that the ranker averages.")
    features_left_out: Annotated[tuple[FeatureGroup, ...], NoDecode] = setting(
        (),
        "Groups of features that the ranker does not use: followed, near, taste, clicked, popular, age, situation, "
        "lift, own_moments or world_moments. Comma-separated; none: it uses all.",
        "`nextclick tune` tells what each of them adds on a stream.",
    )
    candidates_kept: Annotated[int, Field(ge=2)] = setting(
        32,
        "Candidates that the ranker's network scores: the best by a linear score.",
        "Lower values cost less time; a list is never shorter for it.",
    )
    ranker_gradient_norm_max: Rate = setting(5.0, "Norm that the ranker's gradients are clipped to.")
    recall_learning_rate: Rate = setting(0.01, "Learning rate of recall's gains and recency weights (Adam).")
    recall_vectors_learning_rate: Rate = setting(0.01, "Learning rate of recall's item vectors (row-wise Adagrad).")
    replay_held: Annotated[int, Field(ge=0)] = setting(8_192, "Clicks that are kept to be learned again.")
    replay_candidates: Annotated[int, Field(ge=2)] = fixed(32, "Candidates that are kept of each of these clicks.")
    replay_batch: Annotated[int, Field(ge=0)] = setting(32, "Kept clicks that are learned again with each step.")
    negatives: Positive = setting(128, "Sampled items that the next-item loss compares the clicked item with.")
    gradient_norm_max: Rate = setting(1.0, "Norm that the network's gradients are clipped to.")
    gradient_explosion: Annotated[float, Field(gt=1)] = setting(
        50.0, "A step is skipped where its gradient norm is this many times the running average."
    )
    weight_decay: Annotated[float, Field(ge=0)] = setting(0.01, "Weight decay of the dense weights.")
    warm_up_steps: Annotated[int, Field(ge=0)] = setting(50, "First steps, over which the learning rates rise.")
    learning_rate_half_life_steps: Positive = fixed(
        20_000, "Steps in which learning rates fall half of the way to 0.3 times their value."
    )
