"""Which folder a command uses where the click log is embedded, and whether it is the one of a worker.

With a server all commands meet in one place. With the embedded log they meet in a folder; a command that is run with
another one would make an empty log there, and speak to no one.
"""

import sys

from online.config.settings import Settings
from online.worker.connections import named_broker


class OtherFolderError(Exception):
    """There is no click log in the folder; one line with the way out."""


def say_folder(settings: Settings, command: str, *, creates: bool = False) -> None:
    """Says on standard error which folder's click log a command uses, where it is embedded.

    Args:
        settings: that name the folder.
        command: its name.
        creates: whether it may make a log where there is none.

    Raises:
        OtherFolderError: there is no log, and the command must not make one.
    """
    broker = named_broker(settings)
    if broker.log_path is None:
        return
    if broker.log_path.exists():
        text = f"uses the click log of {settings.data_dir}"
    elif creates:
        text = f"makes a new click log in {settings.data_dir}: start `nextclick worker` with the same folder"
    else:
        raise OtherFolderError(
            f"{command}: no worker has ever run in {settings.data_dir} (it has no click log): name its folder with "
            "--data-dir or NEXTCLICK_DATA_DIR, or its Kafka with NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS"
        )
    print(f"nextclick {command}: {text}", file=sys.stderr)
