"""What separates the columns of a CSV file."""

import csv
import re
from collections.abc import Sequence

from stream.event_files.columns import ReadOptions, find_columns
from stream.event_files.errors import EventFileError

#: In this order where the header's names fit several.
KNOWN = (",", ";", "\t", "|", "::")
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", "::": "double colons", " ": "spaces"}
_SPELLED = {"tab": "\t", r"\t": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}
_SNIFFED = 200  # lines
_SNIFFED_CHARACTERS = 16_384  # the standard library's sniffer takes quadratic time
_EXCEL = re.compile(r'"?sep=(.)"?\s*')


def parse_delimiter(text: str) -> str:
    """As it is given on the command line: `;`, `tab`, `::`. Raises ValueError with one line."""
    delimiter = _SPELLED.get(text.lower(), text)
    if not 1 <= len(delimiter) <= 8 or any(c in delimiter for c in '"\r\n\0') or delimiter.isalnum():
        raise ValueError(f"{text!r} separates no columns: give , ; | :: tab or space")
    return delimiter


def said_by_excel(line: str) -> str | None:
    """The delimiter of a first line `sep=;`, which Excel writes and reads; None for any other line."""
    found = _EXCEL.fullmatch(line)
    return found[1] if found else None


def find_delimiter(lines: Sequence[str], options: ReadOptions, file: str) -> str:
    """The delimiter under which the first line has the columns that are needed; else what the lines have in common.

    `lines` are the first ones of the file that are not blank.
    """
    fitting = [delimiter for delimiter in (*KNOWN, " ") if _fits(lines[0], delimiter, options, file)]
    if fitting:
        return fitting[0]
    sample = [line.rstrip("\r\n") for line in lines[:_SNIFFED]]
    for delimiter in ("::", "\t"):
        if len({line.count(delimiter) for line in sample}) == 1 and delimiter in sample[0]:
            return delimiter
    try:
        return csv.Sniffer().sniff("\n".join(sample)[:_SNIFFED_CHARACTERS], ",;\t|").delimiter
    except csv.Error:
        pass
    spaces = {len(line.split()) for line in sample}
    if len(spaces) == 1 and spaces.pop() >= 3 and not any(c in sample[0] for c in ",;\t|"):
        return " "
    return max((",", ";", "\t", "|"), key=sample[0].count)


def split(line: str, delimiter: str) -> list[str]:
    """The cells of a line in which quotes mean nothing."""
    line = line.rstrip("\r\n")
    return line.split() if delimiter == " " else line.split(delimiter)


def _fits(header: str, delimiter: str, options: ReadOptions, file: str) -> bool:
    cells = split(header, delimiter)
    if len(cells) < 2:
        return False
    try:
        find_columns([cell.strip().strip('"') for cell in cells], options, file)
    except EventFileError:
        return False
    return True
