"""Fine-tuning in a backtest: the worker's supervisor, asked by the number of clicks and not by the clock."""

from collections.abc import Mapping, Sequence
from typing import Any

from online.config.settings import Settings
from online.learner.batches import BatchResult
from online.learner.learner import Learner
from online.lifecycle.supervisor import Supervisor
from online.lifecycle.versions import Versions
from online.worker.progress import Progress
from stream.events import Click


class Tuning:
    """Asks for a fine-tuning every `every` clicks, and does all of it before the next one comes. What it gives goes
    through the gate as a worker's does. Drift is not watched."""

    def __init__(self, settings: Settings, learner: Learner, every: int) -> None:
        self.every = every
        self.notices: list[tuple[str, int, str, Mapping[str, Any]]] = []  # kind, clicks until then, text, figures
        self._progress = Progress()
        # In processes of its own it would end when they end, and not at the same click each time.
        settings = settings.model_copy(update={"finetune_processes": 0, "finetune_command": None})
        self._supervisor = Supervisor(
            settings,
            learner=learner,
            totals=self._progress,
            versions=Versions(settings.versions_kept, settings.versions_listed),
            changes=None,
            emit=lambda kind, text, figures: self.notices.append((kind, self._progress.learned, text, figures)),
            read_checkpoint=None,
            clock=lambda: 0.0,
        )

    def after(self, clicks: Sequence[Click], learned: BatchResult) -> None:
        """A micro-batch was learned."""
        before = self._progress.learned
        self._progress.learned += len(clicks)
        self._supervisor.on_batch(clicks, learned)
        if self._progress.learned // self.every > before // self.every:
            self._supervisor.ask_finetuning(f"every {self.every:,} clicks")
        self._supervisor.step()
        while self._supervisor.busy:
            self._supervisor.step()
