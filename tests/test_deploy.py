"""Scrape configuration, alert rules and dashboard name only what the expositions have, and each alert has a case."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from online.api.metrics import Requests
from online.config.settings import Settings
from online.worker.monitor import STUCK_S
from online.worker.problem_kinds import KINDS
from stream import events
from stream.lists import Lists
from tests.online.api.test_serve import STATUS
from tests.online.api.test_worker_http import PROBLEM, own, served
from tests.online.worker.group_statuses import group_statuses
from tests.test_docs import _anchors

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "deploy/prometheus"
GRAFANA = ROOT / "deploy/grafana"
CONFIG = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
CASES = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
DASHBOARD = json.loads((GRAFANA / "nextclick.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS = {"job", "instance", "alertname", "alertstate"}  # labels
WORKER, API = "nextclick", "nextclick-api"  # jobs


def requests() -> str:
    """The exposition of an API that has met everything it counts."""
    counted = Requests(Lists(fakeredis.FakeRedis(), ttl_s=60))
    counted.answered("/recommend/{user}", 200, 0.01)
    counted.served(own=True)
    counted.asked("late")
    counted.impressions("dropped", 1)
    return counted.exposition().decode()


def samples(*texts: str) -> dict[str, set[frozenset[tuple[str, str]]]]:
    """Name of each sample -> the labels that it was seen with."""
    found: dict[str, set[frozenset[tuple[str, str]]]] = defaultdict(set)
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name].add(frozenset(sample.labels.items()))
    return found


def jobs() -> dict[str, dict[str, set[frozenset[tuple[str, str]]]]]:
    """What Prometheus stores of each job."""
    group = group_statuses(problems=[PROBLEM])
    of_worker = samples(own(STATUS | {"problems": [PROBLEM], "lost": 0}), own(group["w-1"]))
    of_api = samples(requests(), served(STATUS), served())
    return {
        WORKER: of_worker,
        API: {name: kept for name, seen in of_api.items() if (kept := {one for one in seen if is_kept(name, one)})},
    }


def is_kept(name: str, labels: frozenset[tuple[str, str]]) -> bool:
    (api,) = (one for one in CONFIG["scrape_configs"] if one["job_name"] == API)
    (relabel,) = api["metric_relabel_configs"]
    assert (relabel["action"], relabel["source_labels"]) == ("keep", ["__name__", "kind"])
    return re.fullmatch(relabel["regex"], f"{name};{dict(labels).get('kind', '')}") is not None


JOBS = jobs()


def expressions() -> Iterator[tuple[str, str]]:
    """Where each stands, and the expression itself with values for Grafana's variables."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")


def test_only_metrics_of_the_api_alone_are_kept_of_its_job() -> None:
    both = {
        name for name in JOBS[WORKER] if not name.startswith(("process_", "nextclick_build", "nextclick_worker_up"))
    }
    assert set(JOBS[API]) & both == set()
    whole = samples(requests(), served(STATUS), served())
    assert set(whole) - set(JOBS[WORKER]) <= set(JOBS[API])
    for kind in KINDS:
        of_group = kind in {"no_leader", "unowned", "base_stale", "worker_gone"}
        assert is_kept("nextclick_problem", frozenset({("kind", kind)})) == of_group, kind


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_each_metric_and_label_that_is_named_exists(where: str, expression: str) -> None:
    every = {name for job in JOBS.values() for name in job}
    named = set(re.findall(r"\b(?:nextclick|process)_\w+", re.sub(r'"[^"]*"', '""', expression)))
    assert named or "ALERTS" in expression or "up{" in expression
    assert named <= every, where
    for metric, selector in re.findall(r"\b((?:nextclick|process)_\w+)\{([^}]*)\}", expression):
        wanted = dict(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', selector))
        if metric != "nextclick_problem":  # the problems of a group come and go
            assert wanted.get("job") not in JOBS or metric in JOBS[wanted["job"]], where
            assert set(wanted) - OF_PROMETHEUS <= labels_of({metric}), where
    for listed in re.findall(r"\b(?:by|on|ignoring|group_left) \(([^)]*)\)", expression):
        unknown = set(re.findall(r"\w+", listed)) - OF_PROMETHEUS
        assert unknown <= labels_of(named), where


def labels_of(metrics: set[str]) -> set[str]:
    return {label for job in JOBS.values() for name in metrics for seen in job.get(name, ()) for label, _ in seen}


def test_values_of_labels_are_those_of_the_code() -> None:
    text = " ".join(expression for _, expression in expressions())
    assert set(re.findall(r'\bkind="([^"]+)"', text)) <= set(KINDS)
    assert set(re.findall(r'\breason="([^"]+)"', text)) <= events.REASONS
    assert {*re.findall(r'\bjob="([^"]+)"', text)} == {one["job_name"] for one in CONFIG["scrape_configs"]}


def test_limits_are_those_of_the_settings() -> None:
    limits = {rule["alert"]: rule["expr"].rsplit(" ", 1)[-1] for rule in RULES}
    fields = Settings.model_fields
    assert float(limits["NextclickLag"]) == fields["lag_told_s"].default
    assert float(limits["NextclickUnreadable"]) == fields["unreadable_share"].default
    assert float(limits["NextclickFlagged"]) == fields["abuse_share_max"].default
    (stuck,) = (rule["expr"] for rule in RULES if rule["alert"] == "NextclickLoopStuck")
    assert f"> {STUCK_S:.0f} " in stuck


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_each_alert_says_what_to_do_and_has_cases(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert len(notes["description"]) > 60
    page, _, anchor = notes["runbook"].partition("#")
    assert anchor in _anchors((ROOT / page).read_text())
    outcomes = set()
    for case in CASES:
        for one in case.get("promql_expr_test", []):
            if f'alertname="{rule["alert"]}"' in one["expr"]:
                outcomes.add(bool(one["exp_samples"]))
    assert outcomes == {True, False}


def test_alerts_have_names_of_their_own() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) > 20


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert titles == [
        *("Serving now", "Stream", "Learning", "Lists and questions", "Redis and checkpoint", "Group", "API")
    ]
    assert len(PANELS) > 30
    assert {one["name"] for one in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_a_panel_of_what_has_not_happened_says_so_instead_of_no_data() -> None:
    happened = {"dead_letters", "notice_counts", "problems", "gate", "window", "click_to_list_ms"}
    quiet = {name: value for name, value in STATUS.items() if name not in happened}
    asked = Requests(Lists(fakeredis.FakeRedis(), ttl_s=60))
    asked.answered("/metrics", 200, 0.01)
    of_api = samples(served(), asked.exposition().decode())
    present = set(samples(own(quiet), own(group_statuses()["w-1"] | dict.fromkeys(happened))))
    present |= {name for name, seen in of_api.items() if any(is_kept(name, one) for one in seen)}
    empty = {
        panel["title"]
        for panel in PANELS
        if not any(set(re.findall(r"\bnextclick_\w+", target["expr"])) <= present for target in panel["targets"])
    }
    assert {"Open problems", "Dead letters", "Candidate in the shadow", "Impressions"} <= empty
    silent = {panel["title"] for panel in PANELS if not panel["fieldConfig"]["defaults"].get("noValue")}
    assert empty & silent == set()


def test_limits_in_the_dashboard_are_those_of_the_alerts() -> None:
    rules = {rule["alert"]: rule["expr"] for rule in RULES}
    drawn = 0
    for panel in PANELS:
        for alert in re.findall(r"Alert: (\w+)\.", panel["description"]):
            assert alert in rules, panel["title"]
            red = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
            if len(red) > 1 and red[-1] not in {0.001, 1}:  # above zero; whether something holds
                assert re.search(rf"[<>] {red[-1]}\b", rules[alert]), panel["title"]
                drawn += 1
    assert drawn > 8


def test_grafana_finds_what_is_provisioned() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/nextclick.yml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == CONFIG["global"]["scrape_interval"]
    folder = provider["options"]["path"]
    assert f"./deploy/grafana/nextclick.json:{folder}/nextclick.json:ro" in compose["grafana"]["volumes"]
    for job, service in ((WORKER, "worker"), (API, "api")):
        (scraped,) = (one for one in CONFIG["scrape_configs"] if one["job_name"] == job)
        (found,) = scraped["dns_sd_configs"]
        assert found["names"] == [service]
        assert found["port"] == Settings.model_fields[f"{service}_port"].default


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: rules are only checked by the tests of names")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.real
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
)
def test_promtool_accepts_the_files(arguments: tuple[str, str, str]) -> None:
    done = promtool(*arguments[:2], PROMETHEUS / arguments[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@pytest.mark.real
def test_promtool_can_read_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": expression} for n, (_, expression) in enumerate(expressions())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = promtool("check", "rules", path)
    assert (done.returncode, f"{len(rules)} rules found" in done.stdout) == (0, True), done.stdout + done.stderr
