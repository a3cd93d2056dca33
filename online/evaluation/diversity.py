"""What diversity costs: lists of one learner, chosen anew with several settings, over a stream of clicks.

Each click's candidates are scored before it is learned, as in a backtest. From the kept ones a list of ten is chosen
with each setting. Likeness goes by recall's item vectors as they were before the click's micro-batch. Vectors that no
list was chosen by (of the Reformer's item table) say independently how alike a list is.

Letters: `n` clicks, `V` rows of items, `D` width of vectors.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from online.config.settings import Settings
from online.evaluation.backtest_events import facts_of, micro_batches
from online.evaluation.diversity_peers import CHOOSE
from online.learner.diversity import cosines, diversified, gini, intra_list_similarity, likeness
from online.learner.learner import Learner
from online.learner.scoring import ScoredCandidates
from online.metrics import K, hit_and_ndcg_at
from stream.events import Click

#: Returns the tags of an item, where they are known.
TagsOf = Callable[[str], Sequence[str]]


OURS = "nextclick"  # how nextclick chooses; the others are those of online/evaluation/diversity_peers.py


class Setting(NamedTuple):
    """How lists are chosen."""

    diversity: float
    method: str = OURS
    max_per_tag: int | None = None


class _Tally:
    """Sums over the lists of one setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.hit = self.ndcg = self.alike = self.apart = 0.0
        self.lists = 0
        self.shown: dict[int, int] = {}

    def add(self, places: NDArray[np.int64], rows: NDArray[np.int64], rank: float) -> None:
        hit, ndcg = hit_and_ndcg_at(np.array([rank]))
        self.hit, self.ndcg = self.hit + float(hit[0]), self.ndcg + float(ndcg[0])
        for row in rows[places].tolist():
            self.shown[row] = self.shown.get(row, 0) + 1

    def figures(self, items: int) -> dict[str, Any]:
        """`items`: how many there were to be listed."""
        n = max(1, self.lists)
        counts = np.zeros(max(items, len(self.shown)))
        counts[: len(self.shown)] = sorted(self.shown.values())
        return {
            "diversity": self.setting.diversity,
            "method": self.setting.method,
            "max_per_tag": self.setting.max_per_tag,
            "hit@10": round(self.hit / n, 5),
            "ndcg@10": round(self.ndcg / n, 5),
            "intra_list_similarity": round(self.alike / n, 5),
            "similarity_by_state": round(self.apart / n, 5),
            "coverage": round(len(self.shown) / max(1, items), 5),
            "gini": round(gini(counts), 5),
        }


def diversity_curve(
    clicks: Sequence[Click],
    settings: Settings,
    choices: Sequence[Setting],
    *,
    tags_of: TagsOf | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Runs one learner over the clicks, and chooses each list with every setting.

    Args:
        clicks: in order of arrival.
        settings: of the learner.
        choices: the settings to compare.
        tags_of: tags of items, by which lists are chosen and compared too; None: none are known.
        on_progress: called with the clicks it is through.

    Returns:
        Figures of each setting over the scored clicks (all but the first fifth): hit@10 and NDCG@10; the mean likeness
        of a list's pairs, and the same by the Reformer's vectors; the share of all items that any list had; the Gini
        coefficient of how often items were listed.

    Raises:
        BacktestError: there are too few clicks.
    """
    facts = facts_of(clicks)
    torch.set_num_threads(settings.threads)
    learner = Learner(settings.model_copy(update={"list_filter": None}), lists=False)
    tallies = [_Tally(choice) for choice in choices]
    for batch in micro_batches(clicks, settings):
        weights = learner.weights
        vectors = weights.vectors.vectors.detach().cpu().numpy().copy()
        others = weights.network.items.vectors.detach().cpu().numpy().copy()
        learned = learner.learn(clicks[batch.start : batch.stop])
        for step in learned.steps:
            for at in range(len(step.scored.kept)):
                place = step.part.start + at
                click = batch.start + place
                if click >= facts.first_scored:
                    out = settings.exclude_seen and facts.repeated[click]
                    target = -1 if out else int(learned.targets[place]) or -1
                    lists = _Candidates.of(learner, step.scored, at, (vectors, others), tags_of)
                    lists.choose(tallies, target)
        on_progress(batch.stop)
    return [tally.figures(int(facts.items.max()) + 1) for tally in tallies]


class _Candidates(NamedTuple):
    """The kept candidates of one click, best first, and how alike they are."""

    scores: NDArray[np.float32]  # (C,)
    rows: NDArray[np.int64]  # (C,)
    tags: list[Sequence[str]] | None
    alike: NDArray[np.float64]  # (C, C)
    apart: NDArray[np.float64]  # (C, C) by vectors that nothing is chosen by

    @staticmethod
    def of(
        learner: Learner,
        scored: ScoredCandidates,
        at: int,
        tables: tuple[NDArray[np.float32], NDArray[np.float32]],
        tags_of: TagsOf | None,
    ) -> "_Candidates":
        present = scored.kept[at] >= 0
        scores = scored.scores[at].float().cpu().numpy()[present]
        order = np.argsort(-scores, kind="stable")
        rows = scored.rows()[at][present][order]
        items = learner.vocabulary.items_of(rows.tolist())
        tags = None if tags_of is None else [tags_of(item or "") for item in items]
        own, other = (_rows_of(table, rows) for table in tables)
        apart = np.maximum(cosines(other.astype(np.float64)), 0)
        return _Candidates(scores[order], rows, tags, likeness(own, tags), apart)

    def choose(self, tallies: Sequence[_Tally], target: int) -> None:
        """Chooses the list of every setting, and adds up how good and how alike it is. `target`: the clicked row."""
        for tally in tallies:
            choice = tally.setting
            if choice.method == OURS:
                places = diversified(
                    self.scores, self.alike, K, diversity=choice.diversity, max_per_tag=choice.max_per_tag,
                    tags=self.tags,
                )  # fmt: skip
            else:
                places = CHOOSE[choice.method](self.scores, self.alike, K, choice.diversity)
            found = np.flatnonzero(self.rows[places] == target)
            tally.lists += 1
            tally.alike += intra_list_similarity(self.alike, places)
            tally.apart += intra_list_similarity(self.apart, places)
            tally.add(places, self.rows, float(found[0]) if len(found) else np.inf)


def _rows_of(table: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Vectors of rows, 0 for those that the table had no room for before the micro-batch."""
    inside = rows < len(table)
    found: NDArray[np.float32] = np.where(inside[:, None], table[np.where(inside, rows, 0)], np.float32(0))
    return found
