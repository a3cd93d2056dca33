"""How often the gate publishes what it should, and how soon: `python -m benchmarks.gate_power [--runs 200]`.

Two models are simulated whose scores (NDCG@10) are as noisy and as alike as those of real ones: users come in sessions
that both models find easy or hard; on a share of the clicks they agree, elsewhere they hit and miss independently.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from online.config.settings import Settings, load_settings
from online.lifecycle.gate import SequentialGate

RATIOS = (0.5, 0.9, 0.98, 1.0, 1.02, 1.05)  # the candidate's mean score to the live one's
AGREE = (0.6, 0.75, 0.9)
STEP = 32


def scores(seed: int, clicks: int, ratio: float, agree: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores (clicks,) of the live model and of the candidate."""
    random = np.random.default_rng(seed)
    easy = np.repeat(random.beta(0.6, 1.4, clicks), random.integers(1, 24, clicks))[:clicks]
    gains = 1 / np.log2(1 + random.integers(1, 11, (2, clicks)))
    live, other = ((random.random(clicks) < easy) * gain / 2 for gain in gains)
    return live, ratio * np.where(random.random(clicks) < agree, live, other)


def decided(gate: SequentialGate, pair: tuple[NDArray[np.float64], NDArray[np.float64]]) -> tuple[bool, int]:
    """Whether the candidate is published, and after how many clicks that is known."""
    for start in range(0, len(pair[0]), STEP):
        if gate.add(*(of[start : start + STEP] for of in pair)) != "go on":
            break
    return gate.decision == "publish", gate.clicks


def rows(settings: Settings, runs: int) -> Iterator[tuple[float, float, float, float, float]]:
    """Agreement, ratio, share published, and clicks until the decision: half of the runs, and nine of ten."""
    for agree in AGREE:
        for ratio in RATIOS:
            clicks = settings.shadow_clicks_max + STEP
            found = [
                decided(SequentialGate(settings.candidate_gate), scores(seed, clicks, ratio, agree))
                for seed in range(runs)
            ]
            published, taken = zip(*found, strict=True)
            half, most = np.quantile(taken, (0.5, 0.9))
            yield agree, ratio, float(np.mean(published)), float(half), float(most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    settings = load_settings()
    print(f"{runs} runs each; margin {settings.gate_margin:.0%}, alpha {settings.gate_alpha:.0%}, ", end="")
    print(f"at most {settings.shadow_clicks_max:,} clicks")
    print("agree on  candidate / live  published  clicks: median, 90th percentile")
    for agree, ratio, published, half, most in rows(settings, runs):
        print(f"{agree:7.0%}  {ratio:16.2f}  {published:9.1%}  {half:22,.0f}  {most:11,.0f}", flush=True)


if __name__ == "__main__":
    main()
