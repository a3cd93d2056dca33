"""Where the state stands: one settled folder, whichever folder a command is started in."""

from pathlib import Path

from platformdirs import user_data_path

CHECKPOINTS = "checkpoints"  # the folder of them, in a worker's folder
WITHOUT_HOME = Path("/var/lib/nextclick")  # of a user whom the machine does not know, as in a container


def default_data_dir() -> Path:
    """The user's own: on Linux `$XDG_DATA_HOME/nextclick`, or `~/.local/share/nextclick`."""
    path = user_data_path("nextclick", appauthor=False)
    return path if path.is_absolute() else WITHOUT_HOME


def newest_checkpoints(data_dir: Path) -> Path | None:
    """Returns the folder of checkpoints that was written to last, of all workers' in a data folder; None: there is
    no checkpoint."""
    folders = [data_dir / CHECKPOINTS, *data_dir.glob(f"*/{CHECKPOINTS}")]
    return max((folder for folder in folders if _newest(folder)), key=_newest, default=None)


def _newest(folder: Path) -> float:
    """Returns when the newest checkpoint of a folder was written; 0 where there is none."""
    if not folder.is_dir():
        return 0.0
    return max((path.stat().st_mtime for path in folder.iterdir() if path.name.isdigit()), default=0.0)
