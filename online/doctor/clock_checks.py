"""Checks of this computer's clock, against those of Redis and of what stands on the topic."""

from collections.abc import Iterable, Sequence

from online.doctor.verdict import Verdict, span
from stream.redis_inspection import RedisNode
from stream.source import Record

AREA = "clock"
CLOCK_APART_S_MAX = 5.0  # ages of lists, lags and expiries are taken from it
_WAY_OUT = "Let a time service (chrony, systemd-timesyncd) set the clocks of all machines."


def check_redis_clock(nodes: Iterable[RedisNode]) -> Verdict:
    """Compares it with the clocks of Redis' servers."""
    ahead = {node.name: node.clock_ahead_s for node in nodes if node.clock_ahead_s is not None}
    if not ahead:
        return Verdict(AREA, "against Redis", "not checked", "Redis did not say what time it is")
    name = max(ahead, key=lambda one: abs(ahead[one]))
    apart, whose = ahead[name], f"Redis at {name}" if name else "Redis"
    if abs(apart) <= CLOCK_APART_S_MAX:
        return Verdict(AREA, "against Redis", "ok", f"{abs(apart):.1f} s apart at most")
    where = "behind" if apart > 0 else "ahead of"
    text = f"this computer's clock is {span(abs(apart))} {where} that of {whose}"
    return Verdict(AREA, "against Redis", "wrong", text, _WAY_OUT)


def check_record_times(latest: Sequence[Record], now: float, *, by_broker: bool) -> Verdict:
    """Compares it with the times of the latest records, which cannot lie in the future.

    Args:
        latest: records of the clicks topic.
        now: this computer's time, in seconds since 1970.
        by_broker: whether the broker's clock made those times (`LogAppendTime`), not the producers'.
    """
    times = [record.timestamp_ms / 1_000 for record in latest if record.timestamp_ms >= 0]
    if not times:
        return Verdict(AREA, "against the topic", "not checked", "no record on the clicks topic has a time")
    ahead_s = max(times) - now
    if ahead_s <= CLOCK_APART_S_MAX:
        return Verdict(AREA, "against the topic", "ok", "no record is from the future")
    whose = "the broker's" if by_broker else "a producer's"
    text = f"the latest record is from {span(ahead_s)} in the future: this computer's clock is behind, or {whose} ahead"
    return Verdict(AREA, "against the topic", "wrong", text, _WAY_OUT)
