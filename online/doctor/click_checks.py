"""Checks a sample of the latest clicks: whether batches can be decoded, and messages be read as clicks."""

from collections import Counter
from collections.abc import Sequence

from online.config.settings import Settings
from online.doctor.verdict import Verdict
from stream.events import BadEvent, parse
from stream.inspection import LATEST, BrokerView
from stream.source import Record

AREA = "broker"
SAMPLE_RECORDS = 200
UNREADABLE_SHARE_MIN = 0.01  # below it some broken messages are no reason to look further


def check_clicks(settings: Settings, view: BrokerView) -> list[Verdict]:
    """Checks the latest messages of the clicks topic."""
    if problem := view.errors.get(LATEST):
        return [Verdict(AREA, "latest clicks", "not checked", problem, "Allow this user to read the clicks topic.")]
    if not view.latest:
        return [Verdict(AREA, "latest clicks", "not checked", f"there is no message on {settings.clicks_topic} yet")]
    decodable = [record for record in view.latest if record.undecodable is None]
    return [*_decoded(settings, view.latest, len(decodable)), _readable(settings, decodable)]


def _decoded(settings: Settings, latest: Sequence[Record], decodable: int) -> list[Verdict]:
    if decodable == len(latest):
        return [Verdict(AREA, "latest batches", "ok", f"the latest {decodable:,} messages can be decoded")]
    bad = next(record for record in latest if record.undecodable is not None)
    where = f"{settings.clicks_topic} partition {bad.partition}"
    text = f"{len(latest) - decodable} places among the latest messages cannot be decoded; {where}, {bad.undecodable}"
    way_out = "Look at the producer's compression and at the broker's disk (docs/outages.md)."
    return [Verdict(AREA, "latest batches", "wrong", text, way_out)]


def _readable(settings: Settings, latest: Sequence[Record]) -> Verdict:
    limits, names = settings.limits, settings.click_names
    read = [parse(record.value, limits=limits, names=names) for record in latest]
    bad = [one for one in read if isinstance(one, BadEvent)]
    text = f"{len(read) - len(bad):,} of the latest {len(read):,} messages are clicks"
    if not bad:
        return Verdict(AREA, "latest clicks", "ok", text)
    reasons = Counter(one.reason for one in bad)
    text += "; others: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    share = len(bad) / len(read)
    grave = bool(settings.unreadable_share) and share >= settings.unreadable_share
    hint = next((one.hint for one in bad if one.reason == reasons.most_common(1)[0][0] and one.hint), "")
    way_out = (
        f"See `nextclick dead-letters` for the messages, and correct their producer{f' ({hint})' if hint else ''}."
    )
    return Verdict(AREA, "latest clicks", "wrong" if grave else "warning" if share >= UNREADABLE_SHARE_MIN else "ok",
                   text, way_out)  # fmt: skip
