"""The columns that impressions add for each candidate (`ShownItems.columns`). All are 0 for items
that were not shown."""

from online.learner.content.columns import Column

OFFSET = Column("shown_offset", "log examination in the list that was clicked, while the click is learned")
COLUMNS = (
    Column("shown_lift", "clicks where it was shown, observed by expected, log"),
    Column("shown_times", "log(1 + times it was shown and examined) / 4"),
    Column("shown_passed", "log(1 + times the user lately examined it and did not click)"),
    Column("shown_passed_ever", "1: it was lately shown to the user, and not clicked"),
)
