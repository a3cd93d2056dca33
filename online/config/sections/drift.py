"""Drift, what it sets off, and outages of the clicks."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings

from online.config.sections.fields import Positive, Rate, Share, fixed, setting


class DriftSettings(BaseSettings):
    """Drift detection, the reaction to drift, and outages."""

    drift_delta: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.0005, "ADWIN's confidence parameter.", "Lower values make alarms rarer."
    )
    drift_tolerance: Annotated[float, Field(ge=0)] = setting(
        1.0, "Rise that Page-Hinkley ignores, in standard deviations of a value."
    )
    drift_threshold: Rate = setting(
        15.0,
        "Sum of the rises beyond the tolerance at which Page-Hinkley raises an alarm, in standard deviations.",
        "Higher values make alarms rarer.",
    )
    drift_clicks_each: Positive = fixed(25, "Clicks whose mean is one value for the drift detectors.")
    drift_values_held: Annotated[int, Field(ge=100)] = fixed(2_000, "Values that are kept for each drift detector.")
    drift_cooling_clicks: Annotated[int, Field(ge=0)] = setting(
        2_000, "Clicks after an alarm in which further detections count as the same drift."
    )
    drift_types_max: Annotated[int, Field(ge=0)] = setting(
        4, "Event types that are watched separately. All others are watched together."
    )
    reaction_clicks: Annotated[int, Field(ge=0)] = setting(
        3_000, "Clicks after a drift alarm in which the model learns faster. 0: no reaction."
    )
    reaction_learning_rate_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = setting(
        2.0, "Factor of the learning rates at the start of a reaction. It falls back to 1."
    )
    reaction_counts_kept: Share = setting(
        0.01, "Weight that earlier clicks keep in all counts when a reaction starts. 1: all of it."
    )
    reaction_replay_kept: Share = setting(
        0.0, "Share of the clicks kept for replay that stays when a reaction starts. 1: all of them."
    )
    outage_share: Annotated[float, Field(gt=0, lt=0.5)] = setting(
        0.2, "Share of the expected click rate below which an outage of the clicks is reported."
    )
    outage_clicks: Positive = setting(200, "Clicks from whose times the expected rate is estimated.")
