"""Files of events (CSV, JSON lines, Parquet) read as messages for the clicks topic, a row at a time.

What a file is, is found in its content, not in its name. Ids stay the text they are ("007" is not 7). What a whole file
gets wrong (a column, a quote, a type) is refused in one line. A single row that is broken becomes a message all the
same: the worker is the judge of messages, and its dead letters show them.

- `event_file`: opens a file, tells its kind, gives its rows; start there
- `opening`, `text`: bytes, unpacked; lines of text, decoded and bounded
- `csv_rows`, `delimiter`, `json_rows`, `parquet_rows`: one module for each format
- `columns`: which column is which field; `messages`: a row as it is published; `tally`: what is reported of many rows
"""

from stream.event_files.columns import ReadOptions, parse_columns
from stream.event_files.errors import EventFileError
from stream.event_files.event_file import EventFile
from stream.event_files.messages import Message
from stream.event_files.tally import RowTally, check_rows, parse_share

__all__ = [
    "EventFile", "EventFileError", "Message", "ReadOptions", "RowTally", "check_rows", "parse_columns", "parse_share",
]  # fmt: skip
