"""The columns that content adds for each candidate; `kernels.fill_content` fills them. All are 0 without content."""

from typing import NamedTuple

from online.learner.content.kernels import COLUMNS_COUNT


class Column(NamedTuple):
    """One input of the content's part of the score."""

    name: str
    meaning: str
    start: float = 0.0  # linear weight in the first score, before anything is learned


COLUMNS = (
    Column("content_known", "1: something is known of the item"),
    Column("content_last", "cosine to the last item"),
    Column("content_profile", "cosine to the user's latest items, decayed"),
    Column("content_popular", "cosine to what is clicked lately by all users"),
    Column("content_lift", "clicks lately on items with its words, tags and values, observed by expected, log"),
    Column("content_first_lift", "the same of first clicks on new items"),
    Column("content_new", "1: it was never clicked"),
    Column("content_few", "1 / (1 + clicks)"),
    Column("content_age", "log hours since it was published, or its first record came, / 4"),
    Column("content_last_few", "content_last · content_few"),
    Column("content_profile_few", "content_profile · content_few"),
    Column("content_lift_few", "content_lift · content_few"),
    Column("content_first_lift_new", "content_first_lift · content_new"),
    Column("content_profile_history", "content_profile · log clicks of the user / 4"),
    Column("content_profile_clicks", "content_profile · log clicks on the item / 4"),
    Column("content_age_few", "content_age · content_few"),
)
#: Scores of their own, which are added as they are: their weights are learned in `learned.py`.
LEARNED = (
    Column("content_features", "mean of learned weights of its words, tags and values", 1.0),
    Column("content_matrix", "learned product of its given vector and the profile of the user's latest items", 1.0),
)
assert len(COLUMNS) + len(LEARNED) == COLUMNS_COUNT
STARTS = tuple(column.start for column in COLUMNS)
