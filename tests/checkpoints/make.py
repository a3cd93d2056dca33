"""Makes the small checkpoint of this version for tests: `python -m tests.checkpoints.make`, from the repository's root.

Run it where the version number was raised. To make one of an earlier version, copy this file to a checkout of that.
"""

import io
import lzma
import tarfile
import tempfile
import tomllib
from pathlib import Path

from online.evaluation.town import Town
from tests.online.conftest import NOW, WorkerHarness

HERE = Path(__file__).resolve().parent
CLICKS = 120  # that have been learned, of two partitions
USERS, ITEMS, SEED = 20, 40, 5
ITEM = b'{"item_id": "i1", "available": false, "title": "A kettle", "tags": ["kitchen"]}'


def published(harness: WorkerHarness, upto: int, start: int = 0) -> WorkerHarness:
    """The same clicks each time, up to the one of number `upto`, and one item that is not available."""
    clicks = list(Town(users=USERS, items=ITEMS, seed=SEED, start=NOW - 172_800).clicks(400))
    harness.publish(clicks[start:upto], partitions=2)
    if not start:
        harness.publish_item("i1", ITEM)
    return harness


def make(archive: Path) -> None:
    """Learns the clicks, and packs the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        loop = published(WorkerHarness(Path(folder)), CLICKS).run()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for path in sorted((loop.checkpoints.folder / f"{loop.checkpoints.numbers()[-1]:08d}").iterdir()):
                entry = tarfile.TarInfo(path.name)
                entry.size = path.stat().st_size
                tar.addfile(entry, io.BytesIO(path.read_bytes()))
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(lzma.compress(packed.getvalue(), preset=9))


if __name__ == "__main__":
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    make(HERE / project["version"] / "checkpoint.tar.xz")
