"""The whole product on Apache Kafka and redis-server: killed on the way, and nothing lost, nothing twice."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.end_to_end import adds_up, run, town

STREAM = Path(__file__).parents[2] / "shared" / "data" / "gowalla-1000.csv.xz"


@pytest.mark.real
@pytest.mark.timeout(3_600)
def test_after_three_kills_each_click_is_learned_and_each_bad_message_buried_once(
    tmp_path: Path, kafka_broker: Any, redis_server: Any
) -> None:
    report = run(
        town(tmp_path / "town.csv", 6_000),
        kafka=kafka_broker.bootstrap_servers,
        redis=redis_server.url,
        broken=0.02,
        kills=3,
        folder=tmp_path / "data",
    )
    assert adds_up(report), report


@pytest.mark.real
@pytest.mark.timeout(3_600)  # a busy machine makes it slow, not wrong
@pytest.mark.skipif(not STREAM.exists(), reason=f"{STREAM} is not there: no real stream to replay")
def test_a_real_stream_is_learned_without_loss_and_beats_simple_lists(
    tmp_path: Path, kafka_broker: Any, redis_server: Any
) -> None:
    """Its beginning; `python -m benchmarks.end_to_end STREAM --kills 3 --broken 0.01` does the same with all of it."""
    report = run(
        STREAM,
        kafka=kafka_broker.bootstrap_servers,
        redis=redis_server.url,
        broken=0.01,
        kills=3,
        limit=10_000,
        finetune_interval_s=10.0,  # as often in a short stream as every 300 s is in the whole one
        folder=tmp_path / "data",
    )
    print(report)
    assert adds_up(report), report
    served, popular, followed = (report["scores"][name]["ndcg@10"] for name in ("served", "popular", "followed"))
    assert served > followed > popular, report
