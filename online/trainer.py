"""The Reformer as the worker uses it: states of users, and one small step of learning with each micro-batch.

Letters: `N` users of a micro-batch, `L` clicks read of each, `D` width, `C` candidates of all users, `K` negatives.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.loss import sampled_softmax_loss
from model.optim import Optimizer, OptimizerConfig
from model.reformer import Histories, Reformer, ReformerConfig
from online.arrays import below
from online.history import Latest
from online.settings import Settings

UNIFORM_SHARE = 0.5  # of the negatives; the rest follow recent popularity


def choose_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


def build_reformer(settings: Settings) -> Reformer:
    """A new network, the same for the same settings on every machine."""
    config = ReformerConfig(
        layers=settings.layers,
        width=settings.width,
        heads=settings.heads,
        rounds=settings.rounds,
        buckets=settings.buckets,
        window=settings.window,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    return Reformer(config).to(choose_device(settings.device))


def build_optimizer(network: Reformer, settings: Settings, learning_rate: float) -> Optimizer:
    return Optimizer(
        network,
        OptimizerConfig(
            learning_rate=learning_rate,
            rows_learning_rate=settings.item_learning_rate,
            weight_decay=settings.weight_decay,
            clip_norm=settings.gradient_norm_max,
            warm_up_steps=settings.warm_up_steps,
            half_life_steps=settings.learning_rate_half_life_steps,
        ),
    )


class Negatives:
    """Items that a guess is measured against: half of them uniform, half by recent popularity, with replacement."""

    def __init__(self, popularity: NDArray[np.float64], rows: int) -> None:
        """`popularity` (V,) of every row; only the first `rows` rows are in use, and row 0 never is."""
        share = np.array(popularity[:rows], np.float64)
        share[0] = 0.0
        total = share.sum()
        uniform = np.full(rows, 1.0 / (rows - 1))
        uniform[0] = 0.0
        self._q = uniform if total <= 0 else UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * share / total
        self._steps = np.cumsum(self._q)

    def draw(self, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Rows (count,) int64 and the log of the probability of each, (count,) float32."""
        rows = np.searchsorted(self._steps, random.random(count) * self._steps[-1], side="right")
        rows = np.minimum(rows, len(self._q) - 1)
        return torch.from_numpy(rows), torch.from_numpy(np.log(self._q[rows])).float()


def next_item_loss(network: Reformer, states: Tensor, targets: Tensor, negatives: tuple[Tensor, Tensor]) -> Tensor:
    """States (N, D) guess targets (N,) against sampled negatives (K,) -> losses (N,) in nats."""
    rows, log_q = (part.to(states.device) for part in negatives)
    target_logits = network.scores(states, targets[:, None])[:, 0]  # (N,)
    negative_logits = network.scores(states, rows)  # (N, K)
    return sampled_softmax_loss(target_logits, negative_logits, targets, rows, log_q)


class Trainer:
    """Owns the network, its optimizer, and the random numbers of learning."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = choose_device(settings.device)
        self.network = build_reformer(settings).eval()  # dropout is for fine-tuning
        self.optimizer = build_optimizer(self.network, settings, settings.learning_rate)
        self.bfloat16 = settings.precision == "bfloat16" or (
            settings.precision == "auto" and self.device.type == "cuda"
        )
        self.random = np.random.default_rng(settings.seed)
        self.rows_changed: set[int] = set()  # freed or handed out since a copy of the network was taken

    def grow(self, rows: int) -> None:
        self.network.items.grow(rows)

    def reset_rows(self, rows: list[int]) -> None:
        self.rows_changed.update(rows)
        at = torch.tensor(rows, dtype=torch.int64)
        self.network.items.reset(at)
        self.optimizer.reset_rows(at.to(self.device))

    def precision(self) -> torch.autocast:
        """A context in which the network's products are computed as `settings.precision` says; weights stay float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    def states(self, latest: Latest) -> Tensor:
        """The state after each click, (N, L, D)."""
        with self.precision():
            states: Tensor = self.network(as_histories(latest, self.device), recompute=False)
        return states

    @torch.no_grad()
    def scores(self, states: Tensor, owners: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the states (N, D) say of candidates (C,), each of the user `owners` (C,) names -> (C,)."""
        of_user = states.detach()[torch.from_numpy(owners).to(self.device)]  # (C, D)
        scores: Tensor = self.network.scores(of_user, torch.from_numpy(rows).to(self.device)[:, None])[:, 0]
        return scores.float().cpu().numpy()

    def update(
        self, states: Tensor, targets: NDArray[np.int64], negatives: Negatives, *, also: Tensor | None = None
    ) -> float:
        """One step on the guesses of `states` (N, D) at `targets` (N,), known rows -> their mean loss, in nats.

        `also`: a loss to be added, whose other gradients are left where they are for somebody else's step.
        """
        wanted = torch.from_numpy(targets).to(self.device)
        loss = next_item_loss(self.network, states, wanted, negatives.draw(self.settings.negatives, self.random)).mean()
        self.optimizer.zero_grad()
        (loss if also is None else loss + also).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()}
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}, {
            "random": self.random.bit_generator.state
        }

    def load_state(self, arrays: dict[str, NDArray[Any]], state: dict[str, Any]) -> None:
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        self.network.load_state_dict(below(tensors, "network"))
        self.optimizer.load_state_tensors(below(tensors, "optimizer"))
        self.random.bit_generator.state = state["random"]


def as_histories(latest: Latest, device: torch.device) -> Histories:
    return Histories(*(torch.from_numpy(part).to(device) for part in latest))
