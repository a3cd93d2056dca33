"""Files of items (CSV, JSON lines, Parquet) read as records for the items topic, a row at a time.

- `columns`: which column is which field of an item, said or guessed, and what kind of values the others have
- `cells`: a cell as the value that a field takes
- `item_file`: opens a file and gives its records; start there
- `tally`: what is reported of many rows
"""

from stream.item_files.columns import ItemOptions, parse_item_columns, parse_only
from stream.item_files.item_file import BadRow, ItemFile, ItemRow
from stream.item_files.tally import ItemTally, check_items

__all__ = [
    "BadRow", "ItemFile", "ItemOptions", "ItemRow", "ItemTally", "check_items", "parse_item_columns", "parse_only",
]  # fmt: skip
