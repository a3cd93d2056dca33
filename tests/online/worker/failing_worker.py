"""Workers that fail at a step of a turn, for test_failing_worker.py: a script, so that they are real processes.

Reads lines `STEP VISIT HOW DATA_DIR` and starts a worker for each, which at that visit of that step is killed by its
own SIGKILL (`kill`), or hangs until this script kills it (`hang`); with `none` it works until it gets a SIGTERM. Says
each one's process id, and how it ended. Workers are forked from this process, so that torch is loaded once.
"""

import json
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

from online.config.settings import load_settings
from online.worker.main import run_worker


def work(life: int, says: int, line: str) -> None:
    step, visit, how, folder = line.strip().split(maxsplit=3)
    visits: Counter[str] = Counter()

    def reached(name: str) -> None:
        visits[name] += 1
        if name == step and visits[name] == int(visit):
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(says, b"h")
            threading.Event().wait()

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # Another group each time: the broker would wait for a member that was killed. Positions are the checkpoint's.
    given = json.loads(sys.argv[1])  # settings that no variable sets
    settings = load_settings(**given, consumer_group=f"life-{os.getppid()}-{life}", data_dir=Path(folder))
    run_worker(settings, stop, reached=reached)


def main() -> None:
    for life, line in enumerate(sys.stdin):
        hears, says = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(hears)
            try:
                work(life, says, line)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(says)
        print(pid, flush=True)
        if os.read(hears, 1):  # nothing: it has ended
            os.kill(pid, signal.SIGKILL)
        os.close(hears)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
