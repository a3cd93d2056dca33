"""A file of settings, a folder of secrets, and the names that settings go by outside."""

import difflib
import io
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream


class Names:
    """The variables `prefix` + FIELD, and `others` that say where more of them are (the first one: a file)."""

    def __init__(
        self,
        prefix: str,
        others: Sequence[str],
        fields: Collection[str],
        renamed: Mapping[str, str] | None = None,
        fixed: Mapping[str, object] | None = None,
    ) -> None:
        """`renamed`: fields by the names they had; `fixed`: values that cannot be set, by the names they had."""
        self.prefix = prefix
        self._renamed = renamed or {}
        self._fixed = fixed or {}
        self.env_file = others[0]
        self._others = others
        self._fields = fields

    def field(self, variable: str) -> str:
        """The field that a variable sets, if it sets one."""
        return variable.removeprefix(self.prefix).lower()

    def is_field(self, variable: str) -> bool:
        return variable.startswith(self.prefix) and self.field(variable) in self._fields

    def known(self, variable: str) -> bool:
        return variable in self._others or self.is_field(variable)

    def unknown(self, variable: str) -> str:
        """A line that says that there is no such setting, and which one may be meant."""
        field = self.field(variable)
        now = self._renamed.get(field, field)
        if now in self._fixed:
            return f"{variable} is no setting any more: its value is fixed at {self._fixed[now]}"
        if now != field:
            return f"{variable} is called {self.prefix}{now.upper()} now: rename it"
        close = difflib.get_close_matches(field, self._fields, n=1)
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


class SecretsDir:
    """The folder whose files hold a setting each, if one is named. pydantic-settings reads them; here they are checked.

    Files of other names are others' secrets, unless they begin as ours do.
    """

    def __init__(self, name: str | None, variable: str, names: Names) -> None:
        self.path = name
        self.problems: list[str] = []
        if name is None:
            return
        try:
            for path in sorted(Path(name).iterdir()):
                sets = path.name.upper()
                if names.is_field(sets):
                    path.read_text(encoding="utf-8")
                elif sets.startswith(names.prefix):
                    self.problems.append(f"{path}: {names.unknown(sets)}")
        except OSError as error:
            self.problems.append(f"{variable}: {error.filename} cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self.problems.append(f"{variable}: a file in {name} is not text in UTF-8")
        if self.problems:
            self.path = None
