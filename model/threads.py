"""One call's work on several threads, each torch operation on one.

Torch splits every operation over its threads and waits for all of them at its end. Where a call is made of hundreds of
small operations, and another process displaces one of the threads now and then, nearly all time is spent waiting (on
two cores with one other busy process: 10 to 20 times the time). Here each thread has operations of its own, and they
wait for each other once. The price, on an otherwise idle machine: up to 1.4 times the time, for Python's own lock.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def count(device: torch.device) -> int:
    """How many parts a call's work is best split into: torch's number of threads on a CPU, elsewhere one."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def run(work: Callable[[T], None], parts: Sequence[T]) -> None:
    """work(part) for each part at the same time, without gradients. Returns when all are done; raises their error."""
    if len(parts) <= 1:
        for part in parts:
            work(part)
        return
    inference = torch.is_inference_mode_enabled()  # such modes belong to a thread

    def in_thread(part: T) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            work(part)

    pool = _pool(len(parts))
    futures = [pool.submit(in_thread, part) for part in parts]
    wait(futures)
    for future in futures:
        future.result()


def _pool(size: int) -> ThreadPoolExecutor:
    """Threads in which torch does not split operations any further."""
    with _lock:
        if size not in _pools:
            threads = torch.get_num_threads()
            pool, all_here = ThreadPoolExecutor(size, thread_name_prefix="nextclick-torch"), threading.Barrier(size)

            def start() -> None:
                all_here.wait()  # so that none of them takes another's turn
                torch.get_num_threads()  # a thread takes the latest setting of any when it first asks, and never again
                torch.set_num_threads(1)

            wait([pool.submit(start) for _ in range(size)])
            torch.set_num_threads(threads)  # of this thread, and of those to come
            _pools[size] = pool
        return _pools[size]
