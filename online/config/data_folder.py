"""Where the state stands: one settled folder, whichever folder a command is started in."""

from pathlib import Path

from platformdirs import user_data_path

WITHOUT_HOME = Path("/var/lib/nextclick")  # of a user whom the machine does not know, as in a container


def default_data_dir() -> Path:
    """The user's own: on Linux `$XDG_DATA_HOME/nextclick`, or `~/.local/share/nextclick`."""
    path = user_data_path("nextclick", appauthor=False)
    return path if path.is_absolute() else WITHOUT_HOME
