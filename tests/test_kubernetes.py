"""The manifests are valid by Kubernetes' own schemas, and true to the code, to the images and to Docker Compose."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from online.config.settings import ENV_FILE, PREFIX, SECRETS_DIR, Settings
from online.worker.connections import _instance_id
from tests.kustomize import containers, documents, identity, merged, render

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy/kubernetes"
KUSTOMIZATIONS = ["base", "overlays/example", "overlays/autoscaling"]
VERSIONS = ["1.29", "1.37"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OF_OTHERS = ("keda.sh/", "kustomize.config.k8s.io/")  # whose schemas are not Kubernetes' own


@pytest.fixture(scope="module")
def kubernetes_validate() -> ModuleType:
    """Loaded by the tests that need it: it takes longer than all of them, and each process of a test run loads this
    file."""
    return importlib.import_module("kubernetes_validate")


def found(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["kind"], one["metadata"]["name"]): one for one in render(DEPLOY / name)}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_each_document_is_valid_by_its_schema(name: str, version: str, kubernetes_validate: ModuleType) -> None:
    checked = 0
    for one in render(DEPLOY / name):
        if not one["apiVersion"].startswith(OF_OTHERS):
            kubernetes_validate.validate(one, version, strict=True)
            checked += 1
    assert checked == 7


def test_the_schemas_refuse_what_is_wrong(kubernetes_validate: ModuleType) -> None:
    wrong = found("base")["StatefulSet", "nextclick-worker"]
    wrong["spec"]["podManagement"] = "Parallel"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_each_file_belongs_to_a_kustomization() -> None:
    used = set()
    for path in DEPLOY.rglob("kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        used |= {path, *((path.parent / name).resolve() for name in content["resources"])}
        used |= {(path.parent / patch["path"]).resolve() for patch in content.get("patches", [])}
    assert set(DEPLOY.rglob("*.yaml")) == {path for path in used if path.is_file()}


def test_each_setting_that_the_manifests_name_exists_and_none_is_a_secret() -> None:
    text = "".join(path.read_text() for path in DEPLOY.rglob("*.yaml"))
    named = set(re.findall(rf"\b{PREFIX}[A-Z0-9_]+", text)) - {ENV_FILE, SECRETS_DIR}
    fields = {name.removeprefix(PREFIX).lower() for name in named}
    assert {"kafka_bootstrap_servers", "workers", "worker_name", "data_dir"} <= fields
    assert not fields - set(Settings.model_fields)
    assert not {field for field in fields if "Secret" in str(Settings.model_fields[field].annotation)}
    assert not fields & {"api_keys"}
    given = re.sub(r"#.*", "", text)
    assert not re.search(r"redis\S*://|://\S*@", given)  # no URL with a password


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_the_settings_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = found(name)
    for key in (("StatefulSet", "nextclick-worker"), ("Deployment", "nextclick-api")):
        (container,) = containers(given[key])
        values = dict(given["ConfigMap", "nextclick"]["data"])
        values |= {one["name"]: one.get("value", "nextclick-worker-0") for one in container["env"]}
        assert all(isinstance(value, str) for value in values.values())
        del values[SECRETS_DIR]
        if "NEXTCLICK_KAFKA_SASL_USERNAME" in values:
            values["NEXTCLICK_KAFKA_SASL_PASSWORD"] = "of the Secret"
        for variable, value in values.items():
            monkeypatch.setenv(variable, value)
        settings = Settings()
        if key[0] == "StatefulSet":
            assert (settings.workers, settings.worker_name) == ("many", "nextclick-worker-0")
            assert settings.static_membership
            assert _instance_id(settings) == "nextclick-worker-0"  # another one for each pod
        for variable in values:
            monkeypatch.delenv(variable)


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_each_pod_runs_with_as_few_rights_as_it_can(name: str) -> None:
    for one in render(DEPLOY / name):
        for container in containers(one):
            pod = one["spec"]["template"]["spec"]
            assert pod["automountServiceAccountToken"] is False
            context = pod["securityContext"]
            assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
            context = container["securityContext"]
            assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            volumes = {volume["name"] for volume in pod["volumes"]}
            volumes |= {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) == volumes
            assert "/tmp" in mounts  # where torch and the compiled loops may write


def test_users_folders_and_images_are_those_of_the_dockerfile_and_of_compose() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for key, service in (("StatefulSet", "worker"), ("Deployment", "api")):
        one = found("base")[key, f"nextclick-{service}"]
        (container,) = containers(one)
        context = one["spec"]["template"]["spec"]["securityContext"]
        assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in dockerfile
        assert container["image"] == COMPOSE["services"][service]["image"]
        assert container["args"] == COMPOSE["services"][service]["command"]
        assert "NEXTCLICK_DATA_DIR=/data" in dockerfile
        assert "/data" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_ports_and_paths_are_those_of_the_api() -> None:
    given = found("base")
    (container,) = containers(given["Deployment", "nextclick-api"])
    env = {one["name"]: one.get("value") for one in container["env"]}
    (port,) = container["ports"]
    assert str(port["containerPort"]) == env["NEXTCLICK_API_PORT"]
    assert given["Service", "nextclick-api"]["spec"]["ports"][0]["targetPort"] == port["name"]
    served = (ROOT / "online/api/app.py").read_text()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = container[probe]["httpGet"]["path"]
        assert f'@app.get("{path}")' in served
        assert container[probe]["httpGet"]["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"  # which answers without Redis


def test_each_selector_finds_its_pods_and_only_these() -> None:
    for name in KUSTOMIZATIONS:
        given = found(name)
        pods = {key: one["spec"]["template"]["metadata"]["labels"] for key, one in given.items() if containers(one)}
        for (kind, service), one in given.items():
            selector = one["spec"].get("selector") if "spec" in one else None
            if selector is not None:
                wanted = selector.get("matchLabels", selector)
                chosen = [key[1] for key, labels in pods.items() if wanted.items() <= labels.items()]
                assert chosen == [service], (kind, service)
        stateful = given["StatefulSet", "nextclick-worker"]["spec"]
        assert ("Service", stateful["serviceName"]) in given


def test_probes_ask_the_worker_of_their_own_pod_and_not_redis() -> None:
    (container,) = containers(found("base")["StatefulSet", "nextclick-worker"])
    env = {one["name"]: one.get("value") for one in container["env"]}
    (port,) = container["ports"]
    assert (env["NEXTCLICK_WORKER_HOST"], env["NEXTCLICK_WORKER_PORT"]) == ("0.0.0.0", str(port["containerPort"]))
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["name"]}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    served = (ROOT / "online/api/worker_http.py").read_text()
    assert all(f'Route("{path}"' in served for path in paths.values())


def test_a_worker_has_time_for_its_last_checkpoint() -> None:
    pod = found("base")["StatefulSet", "nextclick-worker"]["spec"]["template"]["spec"]
    assert COMPOSE["services"]["worker"]["stop_grace_period"] == "1m"
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_the_autoscaler_follows_the_lag_of_the_workers_group() -> None:
    """KEDA's schema is in no package: what it documents is written here by hand."""
    given = found("overlays/autoscaling")
    one, stateful = given["ScaledObject", "nextclick-worker"], given["StatefulSet", "nextclick-worker"]
    data, spec = given["ConfigMap", "nextclick"]["data"], one["spec"]
    assert one["apiVersion"] == "keda.sh/v1alpha1"
    assert set(spec) == {
        "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "advanced",
        "triggers",
    }  # fmt: skip
    assert spec["scaleTargetRef"] == dict(zip(("apiVersion", "kind", "name"), identity(stateful), strict=True))
    assert "replicas" not in stateful["spec"]
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "kafka"
    known = {"bootstrapServers", "consumerGroup", "topic", "lagThreshold", "allowIdleConsumers", "offsetResetPolicy"}
    assert set(trigger["metadata"]) <= known
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert trigger["metadata"]["bootstrapServers"] == data["NEXTCLICK_KAFKA_BOOTSTRAP_SERVERS"]
    assert trigger["metadata"]["consumerGroup"] == data["NEXTCLICK_CONSUMER_GROUP"]
    assert trigger["metadata"]["topic"] == data["NEXTCLICK_CLICKS_TOPIC"]
    partitions = Settings.model_fields["topic_partitions"].default
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"] <= partitions
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert set(behavior) == {"scaleUp", "scaleDown"}
    assert all(rule["policies"][0]["value"] == 1 for rule in behavior.values())


def test_the_example_gives_sizes_and_keeps_the_rest() -> None:
    base, example = found("base"), found("overlays/example")
    assert {one["metadata"]["namespace"] for one in example.values()} == {"nextclick"}
    before, after = (containers(one["StatefulSet", "nextclick-worker"])[0] for one in (base, example))
    assert after["resources"] != before["resources"]
    assert after["image"].startswith("registry.example.org/nextclick-worker:")
    for name in set(before) - {"resources", "image"}:
        assert after[name] == before[name]
    assert example["StatefulSet", "nextclick-worker"]["spec"]["replicas"] == 3


def test_the_helper_merges_as_kustomize_does() -> None:
    target = {"a": 1, "b": {"c": 2, "d": 3}, "env": [{"name": "x", "value": 1}, {"name": "y"}], "args": [1, 2]}
    change = {"b": {"c": None, "e": 4}, "env": [{"name": "x", "value": 5}, {"name": "z"}], "args": [3]}
    assert merged(target, change) == {
        "a": 1, "b": {"d": 3, "e": 4}, "env": [{"name": "x", "value": 5}, {"name": "y"}, {"name": "z"}], "args": [3],
    }  # fmt: skip


def test_compose_can_scale_its_workers() -> None:
    worker = COMPOSE["services"]["worker"]
    assert worker["environment"]["NEXTCLICK_WORKERS"] == "many"
    assert "NEXTCLICK_WORKER_NAME" not in worker["environment"]  # it would be the same for all of them
    assert not {"container_name", "ports", "hostname"} & set(worker)
    assert worker["volumes"] == [f"nextclick-data:{worker['environment']['NEXTCLICK_DATA_DIR']}"]


def test_documents_are_read_from_every_file() -> None:
    assert len(documents(DEPLOY / "base/worker.yaml")) == 3


def test_a_container_of_compose_asks_its_own_worker() -> None:
    test = COMPOSE["services"]["worker"]["healthcheck"]["test"]
    assert test[:3] == ["CMD", "python", "-c"]
    port = Settings.model_fields["worker_port"].default
    assert f"http://127.0.0.1:{port}/healthz" in test[3]
    assert "NEXTCLICK_WORKER_PORT" not in COMPOSE["services"]["worker"]["environment"]
