import pytest
import torch

from model import threads


def test_every_part_is_worked_on_with_one_thread_each_and_no_gradients() -> None:
    seen: list[tuple[int, int, bool]] = []
    before = torch.get_num_threads()
    threads.run(lambda n: seen.append((n, torch.get_num_threads(), torch.is_grad_enabled())), range(3))
    assert sorted(seen) == [(0, 1, False), (1, 1, False), (2, 1, False)]
    assert torch.get_num_threads() == before


def test_an_error_reaches_the_caller_after_all_have_ended() -> None:
    done = []

    def work(n: int) -> None:
        if n == 0:
            raise ValueError("part 0")
        done.append(n)

    with pytest.raises(ValueError, match="part 0"):
        threads.run(work, range(3))
    assert sorted(done) == [1, 2]


def test_nothing_to_do_is_done() -> None:
    threads.run(lambda _: pytest.fail("called"), [])
