"""The columns that users' groups add for each candidate; `kernels.fill_groups` fills them. All are 0 for a user of whom
nothing is known."""

from online.learner.content.columns import Column
from online.learner.groups.kernels import COLUMNS_COUNT

COLUMNS = (
    Column("group_lift", "clicks by users of the same groups, observed by expected, log, mean over the groups"),
    Column("group_best", "the same of the group where it is largest"),
    Column("group_popular", "log(1 + clicks lately by users of the same group, mean over the groups) / 4"),
    Column("group_residual", "observed less expected, by √expected, of the group where it is largest, log"),
    Column("group_lift_few", "group_lift / (1 + clicks of the user)"),
    Column("group_best_few", "group_best / (1 + clicks of the user)"),
    Column("group_popular_few", "group_popular / (1 + clicks of the user)"),
    Column("group_residual_few", "group_residual / (1 + clicks of the user)"),
)
assert len(COLUMNS) == COLUMNS_COUNT
STARTS = tuple(column.start for column in COLUMNS)
