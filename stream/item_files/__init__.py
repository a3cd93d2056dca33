"""Files of items or users (CSV, JSON lines, Parquet) read as records for their topics, a row at a time.

- `columns`: which column is which field of an item, said or guessed, and what kind of values the others have
- `cells`: a cell as the value that a field takes
- `kinds`: what items and users have beside attributes
- `item_file`: opens a file and gives its records; start there
- `tally`: what is reported of many rows
"""

from stream.item_files.columns import ItemOptions, parse_item_columns, parse_only
from stream.item_files.item_file import BadRow, ItemFile, ItemRow
from stream.item_files.kinds import ITEMS, USERS, Kind
from stream.item_files.tally import ItemTally, check_items

__all__ = [
    "ITEMS", "USERS", "BadRow", "ItemFile", "ItemOptions", "ItemRow", "ItemTally", "Kind", "check_items",
    "parse_item_columns", "parse_only",
]  # fmt: skip
