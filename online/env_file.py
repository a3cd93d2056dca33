"""A file of settings, and the names that settings go by outside."""

import difflib
import io
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream


class Names:
    """The variables `prefix` + FIELD, and `env_file`, the one more that names a file of them."""

    def __init__(self, prefix: str, env_file: str, fields: Collection[str]) -> None:
        self.prefix = prefix
        self.env_file = env_file
        self._fields = fields

    def field(self, variable: str) -> str:
        """The field that a variable sets, if it sets one."""
        return variable.removeprefix(self.prefix).lower()

    def is_field(self, variable: str) -> bool:
        return variable.startswith(self.prefix) and self.field(variable) in self._fields

    def known(self, variable: str) -> bool:
        return variable == self.env_file or self.is_field(variable)

    def unknown(self, variable: str) -> str:
        """A line that says that there is no such setting, and which one may be meant."""
        close = difflib.get_close_matches(self.field(variable), self._fields, n=1)
        meant = f"; did you mean {self.prefix}{close[0].upper()}?" if close else ""
        return f"{variable}: there is no such setting{meant}"


class EnvFile:
    """The file of settings that is named, if any. Its values are for pydantic to judge, as those of variables are."""

    def __init__(self, name: str | None, names: Names) -> None:
        self.name = name
        self._names = names
        self.problems: list[str] = []
        self._values: dict[str, str] = {}  # by field
        if name is not None:
            try:
                text = Path(name).read_text(encoding="utf-8")
            except OSError as error:
                self.problems = [f"{self._names.env_file}: {name} cannot be read: {error.strerror}"]
            except UnicodeDecodeError:
                self.problems = [f"{self._names.env_file}: {name} cannot be read: it is not text in UTF-8"]
            else:
                self._take(text)

    def _take(self, text: str) -> None:
        for line in parse_stream(io.StringIO(text)):
            statement = line.original.string
            blank = statement[: len(statement) - len(statement.lstrip())].count("\n")  # lines before it
            where = f"{self.name} line {line.original.line + blank}: "
            if line.error or (line.key is not None and line.value is None):
                self.problems.append(f"{where}not {self._names.prefix}NAME=value")
            elif line.key is not None and not self._names.is_field(line.key):
                self.problems.append(where + self._names.unknown(line.key))
            elif line.key is not None and line.value:  # empty is unset
                self._values[self._names.field(line.key)] = line.value

    def values(self) -> dict[str, Any]:
        """What it sets, by field, without what a variable sets too."""
        variables = {variable.upper() for variable, value in os.environ.items() if value}
        return {
            field: value for field, value in self._values.items() if self._names.prefix + field.upper() not in variables
        }
