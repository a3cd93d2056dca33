"""The terminal of a demo: commands that work when they are pasted there, and whether it can be ended there."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console


def stays(console: Console) -> bool:
    """Whether it runs at a terminal, where Ctrl-C can end the dashboard."""
    try:
        in_front = os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # no terminal, or none of ours
        return False
    return in_front and console.file.isatty() and not os.environ.get("CI")


def shown_command(*arguments: str, variables: Mapping[str, str] | None = None, without: Sequence[str] = ()) -> str:
    """A `nextclick` command for a shell, with the variables that it needs before it, and without others."""
    given = [f"{name}={shlex.quote(value)}" for name, value in (variables or {}).items()]
    if without:
        given = ["env", *(f"-u {name}" for name in without), *given]
    return " ".join([*given, _program(), *map(shlex.quote, arguments)])


def shown_program(name: str, *arguments: str) -> str | None:
    """A command of another program; None where it is not installed."""
    return shlex.join([name, *arguments]) if shutil.which(name) else None


def _program() -> str:
    """`nextclick` where that starts what runs now; else the path of it, from here where it lies below."""
    script = next((path for path in _scripts() if path.is_file()), None)
    if script is None:  # it runs from a checkout that is not installed
        return f"{shlex.quote(sys.executable)} -m online"
    found = shutil.which("nextclick")
    if found and Path(found).samefile(script):
        return "nextclick"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


def _scripts() -> Iterator[Path]:
    started = Path(sys.argv[0]).absolute()
    if started.name == "nextclick":
        yield started
    yield Path(sys.executable).parent / "nextclick"
