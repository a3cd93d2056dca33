"""What the commands print: tables. Text from the stream is shown with its control characters spelled out."""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream.dead_letters import DeadLetter
from stream.lists import TopList
from stream.readable import first_bytes, plain

_UNKNOWN = (
    "Nothing was known of this user: check the id if that is a surprise. The request stands on the topic, and holds "
    "for clicks sent before it; later ones are learned."
)
_METHODS = {"served": "the lists as served", "followed": "what followed last time", "popular": "what is popular"}


def ago(milliseconds: float) -> str:
    """A duration in a short form."""
    seconds = max(0.0, milliseconds / 1_000)
    for size, unit in ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1_000 * seconds:.0f} ms"


def list_view(user_id: str, top: TopList, *, own: bool, k: int) -> RenderableType:
    """One user's list, with where it comes from and how old it is."""
    age = ago(1_000 * time.time() - top.written_at)
    whose = f"the list of {plain(user_id)}" if own else f"{plain(user_id)} has no list yet: the popular one"
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(justify="right", style="dim")
    table.add_column()
    table.add_column(justify="right", style="dim")
    for rank, (item, score) in enumerate(zip(top.items[:k], top.scores[:k], strict=True), start=1):
        table.add_row(str(rank), Text(plain(item)), f"{score:.2%}")
    about = f"{whose}, written {age} ago by version {top.version} ({plain(top.source)}, offset {plain(top.offset)})"
    return Group(Text(about), table)


def status_view(status: Mapping[str, Any]) -> RenderableType:
    """What a worker says about itself; of a group, what all of them do (online/worker/totals.py)."""
    now = 1_000 * time.time()
    table = _pairs()
    waits = "" if status.get("redis") == "ok" else f"; Redis: {status.get('redis')}"
    uptime = ago(now - status["started_at"]) if status.get("started_at") else "?"
    group = status.get("group") or {}
    table.add_row(
        "workers" if "reporting" in group else "worker",
        f"{status.get('state')}, up {uptime}, reported {ago(now - (status.get('written_at') or now))} ago{waits}",
    )
    if group:
        table.add_row("group", Text(group_line(group)))
    _add_problems(table, status, now)
    table.add_row(
        "model",
        f"version {status.get('version')}, {_count(status.get('users'))} users, {_count(status.get('items'))} items",
    )
    table.add_row("unavailable", f"{_count(status.get('unavailable'))} items: published as such, or withdrawn")
    _add_learned(table, status)
    table.add_row("waiting", _waiting(status))
    quantiles = status.get("click_to_list_ms") or {}
    unknown = status.get("click_to_list_unknown")
    also = f"; of {_count(unknown)} lists clocks do not tell" if unknown else ""
    table.add_row("click to list", f"{_ms(quantiles.get('p50'))} (p50), {_ms(quantiles.get('p99'))} (p99){also}")
    letters = {reason: n for reason, n in (status.get("dead_letters") or {}).items() if n}
    table.add_row("dead letters", reasons_line(letters) if letters else "none")
    table.add_row("duplicates", f"{_count(status.get('duplicates'))} left out")
    table.add_row("refreshed", f"{_count(status.get('refreshes'))} lists without a click")
    flagged = {reason: n for reason, n in (status.get("flagged") or {}).items() if n}
    table.add_row("not learned from", reasons_line(flagged) if flagged else "none")
    if status.get("abuse_share_exceeded"):
        through = sum((status.get("let_through") or {}).values())
        share = f"{status.get('abuse_share', 0):.0%} of the latest clicks are flagged as abuse, see the notices"
        table.add_row("limits do not fit", Text(f"{share}; {_count(through)} let through so far", style="red"))
    if status.get("untrained"):
        table.add_row("not trained on", f"{_count(status['untrained'])} clicks, because the lag was too large")
    if privacy := status.get("privacy"):
        table.add_row("privacy", _privacy(privacy))
    table.add_row("drift", _drift(status))
    finetune = status.get("finetune") or {}
    table.add_row("fine-tunings", f"{_count(finetune.get('done'))}, now {finetune.get('state', '?')}")
    if gate := status.get("gate"):
        table.add_row("candidate", gate_line(gate))
    saved = status.get("checkpoint")
    table.add_row("checkpoint", f"{saved.get('number')}, {saved.get('bytes', 0) / 1e6:.1f} MB" if saved else "none yet")
    if lost := status.get("lost"):
        table.add_row("lost", f"{_count(lost)} messages were gone before they were read")
    if (redis := status.get("redis_memory") or {}).get("evicting_since"):
        evicts = (
            f"it evicts lists since {ago(now - redis['evicting_since'])}, {_count(redis.get('evicted'))} keys so far"
        )
        table.add_row("Redis is too small", Text(f"{evicts}: raise its maxmemory", style="red"))
    table.add_row("memory", f"{_count(status.get('memory_mb_max'))} MB at most")
    for partition, offset in (status.get("positions") or {}).items():
        table.add_row(Text(f"next of {plain(partition)}"), _count(offset))
    return Group(table, Text(), scores_table(status), *notice_lines(status, now))


def _privacy(privacy: Mapping[str, Any]) -> Text:
    """Returns the budget that is spent, and whether weights still move."""
    spent = f"epsilon {privacy.get('spent')} of {privacy.get('epsilon')} spent (delta {privacy.get('delta')})"
    steps = f"{_count(privacy.get('moved'))} of {_count(privacy.get('steps'))} private steps moved weights"
    if privacy.get("exhausted"):
        return Text(f"{spent}; {steps}; weights stay as they are from now on", style="red")
    few = "; the latest had too few users" if privacy.get("few_users") else ""
    return Text(f"{spent}; {steps}{few}")


def _add_problems(table: Table, status: Mapping[str, Any], now: float) -> None:
    for problem in status.get("problems") or ():
        label = "waits for" if problem.get("kind") == "waiting" else f"problem: {plain(str(problem.get('kind')))}"
        since = problem.get("since")
        lasts = "" if since is None else f" (for {ago(now - since)})"
        whose = f"{plain(str(problem['worker']))}: " if problem.get("worker") else ""
        table.add_row(label, Text(f"{whose}{plain(str(problem.get('text')))}{lasts}", style="red"))


def _add_learned(table: Table, status: Mapping[str, Any]) -> None:
    rate = f"{_count(status.get('events_per_s'))} per second now"
    if status.get("group"):
        table.add_row("counted", f"{_count(status.get('learned'))} clicks, {rate}")
        table.add_row("learned from", f"{_count(status.get('learned_from'))} clicks")
    else:
        table.add_row("learned", f"{_count(status.get('learned'))} clicks, {rate}")


def group_line(group: Mapping[str, Any]) -> str:
    """A worker's place in its group; or of all workers: how many report, and who leads."""
    base = f"base {_count(group.get('base'))}"
    if "reporting" in group:
        gone = f", {group['gone']} gone" if group.get("gone") else ""
        leader = f"led by {plain(str(group['leader']))}" if group.get("leader") else "without a leader"
        unowned = group.get("unowned")
        shared = f"{group.get('partitions')} partitions" + (f", {unowned} without an owner" if unowned else "")
        return f"{group['reporting']} report{gone}, {leader}, at {base}; {shared}"
    owned = ", ".join(map(str, group.get("owned") or ())) or "none"
    age_s = group.get("round_age_s")
    age = "" if age_s is None else f", which came {ago(1_000 * age_s)} before its report"
    leads = "leads" if group.get("leads") else "follows"
    return f"{plain(str(group.get('worker')))} {leads}, at {base}{age}; owns partitions {owned}"


def _waiting(status: Mapping[str, Any]) -> str:
    lag, oldest_s = status.get("lag"), status.get("lag_s")
    if lag is None:
        return "the broker does not say"
    text = f"{_count(lag)} messages on the topic"
    text += f", the oldest for {ago(1_000 * oldest_s)}" if lag and oldest_s is not None else ""
    if status.get("shedding"):
        return f"{text}; weights are not trained until it has caught up"
    return f"{text}; more come than can be learned" if status.get("behind") else text


def scores_table(status: Mapping[str, Any]) -> Table:
    """Hit rates and NDCG of the lists as served, beside the counts they are held against."""
    title = f"{_count(status.get('scored'))} clicks scored (lately: the latest 1,000)"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in ("hit@10 lately", "all", "NDCG@10 lately", "all"):
        table.add_column(name, justify="right")
    recent, scores = status.get("recent") or {}, status.get("scores") or {}
    for method, label in _METHODS.items():
        late, all_ = recent.get(method) or {}, scores.get(method) or {}
        table.add_row(label, *(_share(of.get(measure)) for measure in ("hit@10", "ndcg@10") for of in (late, all_)))
    return table


def notice_lines(status: Mapping[str, Any], now_ms: float) -> Iterable[Text]:
    """What happened to the model lately, the latest last."""
    for notice in status.get("notices") or ():
        when = f"{ago(now_ms - notice.get('at', now_ms))} ago"
        kind = plain(str(notice.get("kind"))).replace("_", " ")
        yield Text.assemble((f"{when:>10}  ", "dim"), (kind, "bold"), f"  {plain(str(notice.get('text')))}")


def gate_line(gate: Mapping[str, Any]) -> str:
    """How a candidate does beside the live model."""
    scores = f"{_share(gate.get('candidate'))}, the live model {_share(gate.get('live'))}"
    text = f"{scores}, {_count(gate.get('clicks'))} clicks"
    low, high = gate.get("interval") or (None, None)
    return text if low is None else f"{text}; the difference lies between {low:+.4f} and {high:+.4f}"


def versions_view(versions: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The versions of the model, oldest first."""
    now = 1_000 * time.time()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, right in (("version", True), ("state", False), ("published", True), ("at click", True), ("from", True)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    table.add_column("why")
    table.add_column("figures", style="dim")
    for version in versions:
        live = version.get("state") == "live"
        table.add_row(
            str(version.get("number")),
            str(version.get("state")),
            f"{ago(now - version.get('at_ms', now))} ago",
            _count(version.get("learned")),
            "" if version.get("parent") is None else str(version.get("parent")),
            Text(plain(str(version.get("why")))),
            Text(figures_line(version.get("figures") or {})),
            style="bold" if live else None,
        )
    return table


def figures_line(figures: Mapping[str, Any]) -> str:
    """Figures in a line, those within others too."""
    parts = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            parts.append(f"{plain(str(name))} ({figures_line(value)})")
        elif isinstance(value, list | tuple):
            parts.append(f"{plain(str(name))} " + "…".join(_figure(one) for one in value))
        elif value is not None:
            parts.append(f"{plain(str(name))} {_figure(value)}")
    return ", ".join(parts)


def dead_letters_view(
    reasons: Counter[str], latest: Iterable[DeadLetter], redriven: Collection[tuple[str, int, int]] = ()
) -> RenderableType:
    """Counts by reason, then the latest letters: where they stood, what is wrong, how they begin."""
    counts = _pairs()
    for reason, count in reasons.most_common():
        counts.add_row(Text(plain(reason) or "(not one of ours)"), f"{count:,}")
    lines = [Text()]
    for letter in latest:
        place = f"{plain(letter.topic)}:{letter.partition}:{letter.offset}"
        sent = "  (sent round again)" if letter.place in redriven else ""
        lines.append(Text.assemble((place, "bold"), f"  {plain(letter.reason)}: {plain(letter.detail)}{sent}"))
        lines.append(Text(f"  {first_bytes(letter.record.value)}", style="dim"))
    return Group(counts, *lines)


def proof_view(proof: Mapping[str, Any]) -> RenderableType:
    """Which stores were searched for a forgotten user, how often the user was found, and what stays."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("searched")
    table.add_column("found", justify="right")
    for where, count in proof["found"].items():
        shown = "not searched" if count is None else f"{count:,}"
        table.add_row(Text(plain(where)), Text(shown, style="" if count == 0 else "bold red"))
    waits = [Text(f"still to be done: {plain(line)}", style="bold red") for line in proof["waits_for"]]
    verdict = "forgotten: found nowhere any more" if proof["forgotten"] else "not forgotten yet, or not everywhere"
    unknown = [Text(_UNKNOWN)] if proof["known_before"] is False else []
    remains = [Text(), Text("what remains:"), *(Text(f"- {plain(line)}") for line in proof["remains"])]
    return Group(table, *waits, Text(verdict, style="bold"), *unknown, *remains)


def reasons_line(reasons: Mapping[str, int]) -> str:
    """Counts by reason in a line, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda pair: -pair[1])
    return f"{sum(reasons.values()):,} (" + ", ".join(f"{count:,} {plain(reason)}" for reason, count in ordered) + ")"


def _pairs() -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim")
    table.add_column()
    return table


def _drift(status: Mapping[str, Any]) -> str:
    last = status.get("last_alarm")
    text = f"alarms: {_count(status.get('alarms'))}, improvements: {_count(status.get('improvements'))}"
    if not isinstance(last, dict):
        return text
    before, after = last.get("before", 0), last.get("after", 0)
    return f"{text}; in the last alarm the {last.get('signal', 'loss')} went from {before:.3f} to {after:.3f}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else plain(str(value))


def _count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "?"


def _share(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "?"


def _ms(value: Any) -> str:
    return f"{value:,.0f} ms" if isinstance(value, int | float) else "?"
