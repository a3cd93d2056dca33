"""The part of kustomize that deploy/kubernetes uses, so that its overlays can be checked without kustomize."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

KNOWN = {"apiVersion", "kind", "resources", "labels", "namespace", "images", "replicas", "patches"}
NAMED = ("containers", "env", "ports", "volumes", "volumeMounts")  # lists whose entries are merged, by this name
KEYS = {"volumeMounts": "mountPath", "ports": "containerPort"}


def render(folder: Path) -> list[dict[str, Any]]:
    """Returns the documents of a kustomization. A field that this module does not know is an error."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) <= KNOWN, f"{folder}: {set(kustomization) - KNOWN}"
    found: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = folder / name
        found += render(path.resolve()) if path.is_dir() else documents(path)
    for patch in kustomization.get("patches", []):
        (change,) = documents(folder / patch["path"])
        (target,) = [one for one in found if identity(one) == identity(change)]
        found[found.index(target)] = merged(target, change)
    for label in kustomization.get("labels", []):
        assert set(label) == {"pairs"}
        for one in found:
            one["metadata"].setdefault("labels", {}).update(label["pairs"])
    for one in found:
        if "namespace" in kustomization:
            one["metadata"]["namespace"] = kustomization["namespace"]
        for image in kustomization.get("images", []):
            for container in containers(one):
                name, _, tag = container["image"].rpartition(":")
                if name == image["name"]:
                    container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"
    for wanted in kustomization.get("replicas", []):
        (target,) = [one for one in found if one["metadata"]["name"] == wanted["name"] and "replicas" in one["spec"]]
        target["spec"]["replicas"] = wanted["count"]
    return found


def documents(path: Path) -> list[dict[str, Any]]:
    """Returns the documents of a YAML file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one is not None]


def identity(document: dict[str, Any]) -> tuple[str, str, str]:
    """Returns what tells documents apart."""
    return document["apiVersion"], document["kind"], document["metadata"]["name"]


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the containers of a workload."""
    found: list[dict[str, Any]] = document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    return found


def merged(target: Any, change: Any, field: str = "") -> Any:
    """Returns a strategic merge patch's result: objects are merged, null removes, named lists are merged by name."""
    if isinstance(target, dict) and isinstance(change, dict):
        result = deepcopy(target)
        for name, value in change.items():
            if value is None:
                result.pop(name, None)
            else:
                result[name] = merged(result.get(name), value, name)
        return result
    if isinstance(target, list) and isinstance(change, list) and field in NAMED:
        key = KEYS.get(field, "name")
        result = {one[key]: one for one in deepcopy(target)}
        for one in change:
            result[one[key]] = merged(result.get(one[key]), one)
        return list(result.values())
    return deepcopy(change)
