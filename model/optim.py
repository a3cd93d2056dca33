"""What moves the weights: row-wise Adagrad for the item table, AdamW for the rest.

Letters: `V` rows of a table, `N` rows that a batch touched, `D` width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.adam import Adam
from model.items import ItemTable


@dataclass(frozen=True)
class OptimizerConfig:
    """`learning_rate`: AdamW's, at its peak. `rows_learning_rate`: Adagrad's, larger because each item is seen rarely.
    `weight_decay`: matrices only; on an endless stream it is what lets go of what no click confirms any more.
    `clip_norm`: the largest norm of all gradients together; one odd micro-batch moves the weights no further.
    `warm_up_steps`: the rates rise linearly while Adam's second moments are still guesses.
    `half_life_steps`: the time after which the rates have come half way down to `floor`, a share of the peak. They
    stay there: a stream has no end to anneal towards, and a model that stops learning ages.
    """

    learning_rate: float = 1e-3
    rows_learning_rate: float = 0.02
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warm_up_steps: int = 100
    half_life_steps: int = 20_000
    floor: float = 0.3

    def share(self, step: int) -> float:
        """The rates at a step (counted from 0), as a share of their peaks."""
        warm = min(1.0, (step + 1) / (self.warm_up_steps + 1))
        decayed: float = 0.5 ** (max(0, step - self.warm_up_steps) / self.half_life_steps)
        return warm * (self.floor + (1 - self.floor) * decayed)


class RowwiseAdagrad:
    """Adagrad (Duchi, Hazan, Singer 2011) with one number per row: the sum of the row's mean squared gradients.

    Of tables with sparse gradients, only the touched rows are read or written. A row's step is at most
    `learning_rate` · √D long, whatever the gradient's scale. A table may grow between steps; its state follows.
    """

    def __init__(self, tables: Mapping[str, nn.Parameter], *, learning_rate: float, epsilon: float = 1e-8) -> None:
        self.tables = dict(tables)
        self.sums = {name: table.detach().new_zeros(len(table)) for name, table in tables.items()}  # (V,) each
        self.learning_rate = learning_rate
        self.epsilon = epsilon

    @torch.no_grad()
    def step(self) -> None:
        for name, table in self.tables.items():
            if table.grad is None:
                continue
            self._follow(name)
            sums = self.sums[name]
            if table.grad.is_sparse:
                gradient = table.grad.coalesce()
                rows, values = gradient.indices()[0], gradient.values()  # (N,), (N, D)
                touched = sums[rows] + values.square().mean(-1)
                sums[rows] = touched
                scale = -self.learning_rate / (touched.sqrt() + self.epsilon)
                table.data.index_add_(0, rows, values * scale[:, None])
            else:
                sums += table.grad.square().mean(-1)
                table.data.addcmul_(table.grad, (-self.learning_rate / (sums.sqrt() + self.epsilon))[:, None])

    def reset_rows(self, rows: Tensor) -> None:
        """Rows (N,) int64 forget what their former items' gradients were. Those beyond the table have nothing to."""
        for name, table in self.tables.items():
            self._follow(name)
            self.sums[name][rows[rows < len(table)]] = 0

    def _follow(self, name: str) -> None:
        sums, rows = self.sums[name], len(self.tables[name])
        if rows != len(sums):
            self.sums[name] = sums.new_zeros(rows)
            self.sums[name][: len(sums)] = sums


class Optimizer:
    """One step for a micro-batch: clip, AdamW on the dense weights, row-wise Adagrad on every `ItemTable` in the
    model.

    `boost` multiplies the learning rates; it is 1 except after the world has changed.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig = OptimizerConfig()) -> None:
        self.config = config
        self.boost = 1.0
        self.steps = 0
        tables = {
            f"{prefix}.{name}" if prefix else name: parameter
            for prefix, module in model.named_modules()
            if isinstance(module, ItemTable)
            for name, parameter in module.named_parameters()
        }
        self.rows = RowwiseAdagrad(tables, learning_rate=config.rows_learning_rate)
        self.dense = {n: p for n, p in model.named_parameters() if p.requires_grad and n not in tables}
        self.parameters = [*self.dense.values(), *tables.values()]
        matrices = [p for p in self.dense.values() if p.dim() > 1]
        others = [p for p in self.dense.values() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.adam = Adam([g for g in groups if g["params"]], learning_rate=config.learning_rate)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def gradient_norm(self) -> float:
        """Of all gradients together."""
        return float(torch.nn.utils.get_total_norm(self._gradients()))

    @torch.no_grad()
    def step(self, norm: float | None = None) -> float:
        """Moves the weights along their gradients -> the gradients' norm before clipping (`norm`, if that is known).

        A norm that is not finite moves nothing: weights that are NaN once are NaN for good.
        """
        norm = self.gradient_norm() if norm is None else norm
        if math.isfinite(norm):
            if norm > self.config.clip_norm:
                torch._foreach_mul_(self._gradients(), self.config.clip_norm / norm)
            share = self.boost * self.config.share(self.steps)
            for group in self.adam.param_groups:
                group["lr"] = share * self.config.learning_rate
            self.rows.learning_rate = share * self.config.rows_learning_rate
            self.adam.step()
            self.rows.step()
            self.steps += 1
        return norm

    def _gradients(self) -> list[Tensor]:
        """Those that there are; of sparse ones the values, one of each row."""
        for table in self.rows.tables.values():
            if table.grad is not None and table.grad.is_sparse:
                table.grad = table.grad.coalesce()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return [g.values() if g.is_sparse else g for g in gradients]

    def reset_rows(self, rows: Tensor) -> None:
        """Rows (N,) int64 of the item tables have new items now, which start without their predecessors' state."""
        self.rows.reset_rows(rows)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors: `step`, `adam.<parameter>.<moment>`, `rows.<table>`. Clones, so that they can
        be written while learning goes on."""
        found = {"step": torch.tensor(self.steps), "boost": torch.tensor(self.boost, dtype=torch.float64)}
        for name, parameter in self.dense.items():
            for moment, value in self.adam.state.get(parameter, {}).items():
                found[f"adam.{name}.{moment}"] = value.detach().clone()
        for name in self.rows.tables:
            found[f"rows.{name}"] = self.rows.sums[name].clone()
        return found

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes back to what `state_tensors` gave. KeyError: a table's state is missing."""
        self.steps, self.boost = int(tensors["step"]), float(tensors["boost"])
        self.adam.state.clear()
        for name, parameter in self.dense.items():
            prefix = f"adam.{name}."
            moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if moments:
                self.adam.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in moments.items()}
        for name, table in self.rows.tables.items():
            self.rows.sums[name] = tensors[f"rows.{name}"].to(table.device, copy=True)
