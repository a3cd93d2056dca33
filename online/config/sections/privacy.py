"""Differential privacy of the shared weights. Off by default."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Rate, fixed, setting

CLICKS_PER_STEP_MAX = 65_536  # a step holds the gradients of at most so many users


class PrivacySettings(BaseSettings):
    """Privacy of users towards each other. docs/privacy.md says what is covered, and what is not."""

    privacy_epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = setting(
        0.0,
        "Budget epsilon of differential privacy of the weights, for each user with all clicks. 0: off. With a budget, "
        "few weights are trained, by clipped and noisy sums; once it is spent, no weight moves any more. Needs the "
        "extra privacy, and a data folder in which nothing was learned without it.",
        "8 is a usual choice, 1 a strict one.",
    )
    privacy_delta: Annotated[float, Field(gt=0, lt=1)] = setting(
        1e-6, "Delta of the same.", "Keep it far below one by the number of your users."
    )
    privacy_clip_norm: Rate = setting(1.0, "Norm that the sum of one user's gradients in a private step is clipped to.")
    privacy_clicks_per_step: Annotated[int, Field(gt=0, le=CLICKS_PER_STEP_MAX)] = setting(
        1_000,
        "Clicks of which a private step sums up the gradients.",
        "The noise of a step is the same for few clicks and for many: raise it where you have more than a few "
        "thousand clicks a day.",
    )
    privacy_steps_per_user: Positive = setting(
        4,
        "Private steps that one user's clicks take part in at most, in all. The budget covers them; later clicks of "
        "the user train no weight.",
        "More let a user teach more often, with more noise in each step.",
    )
    privacy_steps: Positive = setting(
        1_000,
        "Private steps in all. After them no weight moves any more. It bounds memory: who took part is remembered.",
        "Raise it, or clicks per step, for a stream that goes on for long.",
    )
    privacy_learning_rate: Rate = setting(0.1, "Learning rate of a private step (Adam).")
    pair_users_min: Annotated[int, Field(ge=0, le=64)] = setting(
        0,
        "Different users who must have made a pair of items (one clicked soon after the other) before it is counted, "
        "so that others' lists show it. 0 and 1: off. It is no differential privacy.",
        "2 to 5. It costs most where few users click the same.",
    )
    pairs_waiting_held: Positive = setting(
        1_000_000,
        "Pairs of items that wait for more users, 4 bytes for each of the users and 12. Where there is no room, pairs "
        "that few have made start anew.",
    )
    privacy_seed: int = fixed(-1, "Seed of the noise, for tests; below 0: the system's entropy.")

    @property
    def private(self) -> bool:
        """Whether weights are trained under differential privacy."""
        return self.privacy_epsilon > 0

    def _privacy_problems(self: Any) -> Iterator[str]:
        """What does not fit together, by the variables' names."""
        if self.privacy_epsilon == 0:
            return
        if self.workers == "many":
            yield "NEXTCLICK_PRIVACY_EPSILON needs NEXTCLICK_WORKERS=one: what workers exchange is not accounted for"
        if self.predicts_worth:
            yield (
                "NEXTCLICK_PRIVACY_EPSILON needs NEXTCLICK_EVENT_WEIGHTS, NEXTCLICK_VALUE_AS_WORTH and "
                "NEXTCLICK_OBJECTIVE as they are by default: predictions of types and values are not accounted for"
            )
