"""The folder of a fine-tuning outside the worker: what it is given, and what it gives back. Safetensors and JSON.

It holds no user id; the clicks of users it does hold, so it is removed as soon as the fine-tuning is over.

Letters: `B` histories, `L` clicks of each, `V` item rows, `R` kept clicks, `K` candidates of each, `F` features.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from online.config.sections.finetuning import FinetuningSettings
from online.config.sections.learning import LearningSettings
from online.config.sections.network import NetworkSettings
from online.config.settings import Settings
from online.learner.arrays import below, joined
from online.learner.history import ClicksOldestFirst
from online.learner.learner import Learner
from online.learner.next_item import Negatives
from online.learner.ranking_model import RankingModel, choose_device
from online.learner.replay_buffer import ReplayBuffer
from online.lifecycle.shares import Shares
from online.lifecycle.tuning_steps import TuningSteps, figures_of

ARRAYS, JOB = "job.safetensors", "job.json"
TUNED, RESULT = "tuned.safetensors", "result.json"
#: The settings that training depends on. No other is written, so no password is.
WRITTEN = {"popularity_half_lives"}.union(
    *(section.model_fields for section in (NetworkSettings, LearningSettings, FinetuningSettings))
) - {"finetune_command"}


class FolderError(Exception):
    """A folder that cannot be read, or whose content does not fit; one line."""


@dataclass(frozen=True)
class Job:
    """All that a fine-tuning needs."""

    settings: Settings
    seed: int
    rows: int  # of items that are in use
    weights: Mapping[str, NDArray[Any]]
    popularity: NDArray[np.float64]  # (V,)
    histories: ClicksOldestFirst  # (B, L)
    features: NDArray[np.float16]  # (R, K, F) of the kept clicks
    present: NDArray[np.bool_]  # (R, K)
    content: NDArray[np.float16] | None = None  # (R, K, G) what items say; None: nothing is known
    click_weights: NDArray[np.float32] | None = None  # (R,) of the kept clicks; None: all weigh 1

    def steps(self, shares: Shares | None = None) -> TuningSteps:
        """Returns the training steps, on weights of their own."""
        replay = _replay(self.settings, self)
        return TuningSteps(
            _model(self.settings, self.weights),
            self.histories,
            negatives=Negatives(self.popularity, self.rows),
            replay=replay,
            seed=self.seed,
            shares=shares,
        )


@dataclass(frozen=True)
class Result:
    """What a fine-tuning gives back."""

    tuned: dict[str, Tensor]  # every weight by name
    losses: list[float]
    ranking_losses: list[float]
    failed: str | None  # why it must be thrown away
    seconds: float  # that the steps took

    def figures(self) -> dict[str, Any]:
        """Returns steps, the mean losses in the first half of the steps and in the second, in nats, and seconds."""
        return figures_of(self.losses, self.ranking_losses) | {"seconds": round(self.seconds, 3)}


def job_of(learner: Learner, histories: ClicksOldestFirst, start: Mapping[str, Tensor], *, seed: int) -> Job:
    """Returns a copy of all that a fine-tuning of `start` needs of a learner, so that the learner can go on."""
    replay = learner.replay
    return Job(
        settings=learner.settings,
        seed=seed,
        rows=learner.vocabulary.rows,
        weights={name: tensor.cpu().numpy() for name, tensor in start.items()},
        popularity=learner.popularity().copy(),
        histories=histories,
        features=learner.weights.as_used(replay.features[: replay.filled]).cpu().numpy().copy(),
        present=replay.present[: replay.filled].cpu().numpy().copy(),
        content=None if replay.content is None else replay.content[: replay.filled].cpu().numpy().copy(),
        click_weights=None if replay.weights is None else replay.weights[: replay.filled].cpu().numpy().copy(),
    )


def write_job(folder: Path, job: Job) -> None:
    """Writes a job. Raises OSError or SafetensorError, as on a full disk."""
    arrays = joined({"weights": job.weights, "histories": job.histories._asdict()})
    arrays |= {"popularity": job.popularity, "features": job.features, "present": job.present}
    if job.content is not None:
        arrays["content"] = job.content
    if job.click_weights is not None:
        arrays["click_weights"] = job.click_weights
    _save(folder / ARRAYS, arrays)
    settings = job.settings.model_dump(mode="json", include=WRITTEN)
    _put(folder / JOB, {"settings": settings, "seed": job.seed, "rows": job.rows})


def read_job(folder: Path) -> Job:
    """Reads what `write_job` wrote. Raises FolderError."""
    try:
        arrays, state = load_file(folder / ARRAYS), json.loads((folder / JOB).read_text())
        return Job(
            settings=Settings(**state["settings"]),
            seed=state["seed"],
            rows=state["rows"],
            weights=below(arrays, "weights"),
            popularity=arrays["popularity"],
            histories=ClicksOldestFirst(**below(arrays, "histories")),
            features=arrays["features"],
            present=arrays["present"],
            content=arrays.get("content"),
            click_weights=arrays.get("click_weights"),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise FolderError(f"the job in {folder} cannot be read: {error}") from error


def write_result(folder: Path, steps: TuningSteps, seconds: float) -> None:
    """Writes what steps have tuned in so many seconds. The file that says so is the last and appears whole."""
    _save(folder / TUNED, {name: tensor.detach().cpu().numpy() for name, tensor in steps.weights.tensors().items()})
    found = {"losses": steps.losses, "ranking_losses": steps.ranking_losses}
    _put(folder / RESULT, {**found, "failed": steps.failed, "seconds": seconds})


def read_result(folder: Path, start: Mapping[str, Tensor]) -> Result:
    """Reads what `write_result` wrote, onto the devices of `start`.

    Raises:
        FolderError: there is nothing, it is damaged, or these are not the weights `start` fine-tuned.
    """
    try:
        state = json.loads((folder / RESULT).read_text())
        arrays = load_file(folder / TUNED)
        losses, ranking_losses = ([float(loss) for loss in state[name]] for name in ("losses", "ranking_losses"))
        failed = None if state["failed"] is None else str(state["failed"])
        result = Result({}, losses, ranking_losses, failed, float(state["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise FolderError(f"the result cannot be read: {error}") from error
    shapes = {name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in start.items()}
    if shapes != {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}:
        raise FolderError("the result has other weights than the job")
    result.tuned.update({name: torch.from_numpy(array).to(start[name].device) for name, array in arrays.items()})
    return result


def _model(settings: Settings, weights: Mapping[str, NDArray[Any]]) -> RankingModel:
    model = RankingModel(settings)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    modules = {"network": model.network, "ranker": model.ranker, "own": model.own, "world": model.world}
    for name, module in {**modules, "vectors": model.vectors, **model.added.parts}.items():
        module.load_state_dict(below(tensors, name))
    model.first.data.copy_(tensors["first"])
    return model


def _replay(settings: Settings, job: Job) -> ReplayBuffer:
    held, device = settings.replay_held, choose_device(settings.device)
    buffer = ReplayBuffer(held, job.features.shape[1], job.features.shape[2], settings.seed, device)
    arrays = {"features": job.features, "present": job.present}
    arrays |= {} if job.content is None else {"content": job.content}
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    buffer.filled = len(job.features)
    buffer.features[: buffer.filled], buffer.present[: buffer.filled] = tensors["features"], tensors["present"]
    if "content" in tensors:
        buffer.content = tensors["content"]
    if job.click_weights is not None:
        buffer.weights = torch.from_numpy(job.click_weights).to(device)
    return buffer


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)


def _put(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON; the file appears whole."""
    writing = path.with_suffix(".writing")
    writing.write_text(json.dumps(content))
    os.replace(writing, path)
