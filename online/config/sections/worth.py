"""What a click is worth: by its event type, and by its value; and what lists are ranked by."""

from pydantic_settings import BaseSettings

from online.config.event_weights import known_names, weights_in
from online.config.formula import P_CLICK, Formula, parse
from online.config.sections.fields import Rate, setting


class WorthSettings(BaseSettings):
    """Worth of clicks, and objectives (docs/objectives.md)."""

    event_weights: str = setting(
        "",
        "What an event of each type is worth, as in click=1,purchase=5,return=-5,impression=0. Types not named weigh "
        "1. A click trains the ranker by its weight; of 0 or less it is not trained towards. Of each named type "
        "the chance is predicted. Empty: all weigh 1, and nothing is predicted but the next item.",
        "Set it where events of several types come in, and some matter more, or speak against an item.",
    )
    value_as_worth: bool = setting(
        False,
        "Whether a click trains by its value too: by log(1 + value), compared with the average click that has one.",
        "To rank by value, name it in the objective: that was better.",
    )
    value_max: Rate = setting(
        1_000.0,
        "Value that counts at most, of any click. Negative ones count as 0.",
        "Set it near your largest usual one.",
    )
    objective: str = setting(
        P_CLICK,
        "What lists are ranked by, as a formula: p_click * (1 + 4 * p_purchase), p_click * value. POST /rank and GET "
        "/recommend?fresh=true may name another one.",
        "Set it where the likeliest click is not the best one.",
    )
    negative_half_life_days: Rate = setting(
        30.0, "Time in which an item recovers half of what it lost with a user by an event of negative weight."
    )
    heads_learning_rate: Rate = setting(0.005, "Learning rate of the predictions of event types and of value (Adam).")

    @property
    def weights_by_type(self) -> dict[str, float]:
        """The weight of each named event type."""
        return weights_in(self.event_weights)

    @property
    def predicts_worth(self) -> bool:
        """Whether more is predicted than the next item."""
        return bool(self.event_weights.strip()) or self.value_as_worth or self.objective.strip() != P_CLICK

    @property
    def formula_names(self) -> tuple[str, ...]:
        """What formulas may hold."""
        return known_names(self.weights_by_type, built=self.predicts_worth)

    def formula(self, text: str | None = None) -> Formula:
        """Reads an objective; None: the one that is set. Raises FormulaError."""
        return parse(self.objective if text is None else text, self.formula_names)
