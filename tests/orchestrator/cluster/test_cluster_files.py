"""docs/cluster: what a person gives to `ray up`, `kubectl apply` and a shell."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml

from orchestrator.cli.verbs.queue import up

DOCS = Path(__file__).parents[3] / "docs"
TEXTS = [DOCS / "cluster.md", DOCS / "cluster" / "ray_up_aws.yaml", DOCS / "cluster" / "kuberay.yaml"]

# Fields of ray.io/v1 (KubeRay 1.6) and of Kubernetes' own pods, as far as the manifest uses them: name -> type, or the name
# of another table. The manifest as a whole was checked once against the models of Kubernetes' Python client.
FIELDS: dict[str, dict[str, object]] = {
    "RayCluster": {
        "rayVersion": str,
        "authOptions": "AuthOptions",
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": "AutoscalerOptions",
        "headGroupSpec": "HeadGroup",
        "workerGroupSpecs": ["WorkerGroup"],
    },
    "AuthOptions": {"mode": str},
    "AutoscalerOptions": {"idleTimeoutSeconds": int, "upscalingMode": str},
    "HeadGroup": {"serviceType": str, "rayStartParams": dict, "template": "Template"},
    "WorkerGroup": {
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "rayStartParams": dict,
        "template": "Template",
    },
    "Template": {"metadata": dict, "spec": "Pod"},
    "Pod": {"containers": ["Container"], "volumes": ["Volume"]},
    "Container": {
        "name": str,
        "image": str,
        "command": list,
        "args": list,
        "env": ["Variable"],
        "ports": ["Port"],
        "resources": "Resources",
        "volumeMounts": ["Mount"],
    },
    "Variable": {"name": str, "value": str, "valueFrom": "Source"},
    "Source": {"secretKeyRef": "SecretKey"},
    "SecretKey": {"name": str, "key": str},
    "Port": {"containerPort": int, "name": str},
    "Resources": {"requests": dict, "limits": dict},
    "Mount": {"name": str, "mountPath": str},
    "Volume": {"name": str, "persistentVolumeClaim": "Claim"},
    "Claim": {"claimName": str},
}


def misfits(value: object, kind: object, path: str) -> list[str]:
    """Where a value has an unknown field or the wrong type."""
    if isinstance(kind, list):
        items = value if isinstance(value, list) else [None]
        return [line for n, item in enumerate(items) for line in misfits(item, kind[0], f"{path}[{n}]")]
    if not isinstance(kind, str):
        is_right = type(value) is kind and (kind is not dict or all(isinstance(item, str) for item in value.values()))
        return [] if is_right else [f"{path} is {value!r}"]
    if not isinstance(value, dict):
        return [f"{path} is {value!r}"]
    fields = FIELDS[kind]
    return [
        line
        for name, item in value.items()
        for line in (misfits(item, fields[name], f"{path}.{name}") if name in fields else [f"{path} has no field {name}"])
    ]


@pytest.fixture(scope="module")
def kuberay() -> tuple[dict, dict]:
    claim, cluster = yaml.safe_load_all((DOCS / "cluster" / "kuberay.yaml").read_text())
    return claim, cluster


def groups(cluster: dict) -> list[dict]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def test_the_ray_up_file_fits_rays_own_schema():
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__path__[0]) / "ray-schema.json").read_text())
    config = yaml.safe_load((DOCS / "cluster" / "ray_up_aws.yaml").read_text())
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}, "the orchestrator's machine takes no jobs"
    assert all(node["min_workers"] <= node["max_workers"] <= config["max_workers"] for node in types.values())


def test_the_kuberay_manifest_uses_fields_that_exist(kuberay):
    claim, cluster = kuberay
    assert (cluster["apiVersion"], cluster["kind"], claim["kind"]) == ("ray.io/v1", "RayCluster", "PersistentVolumeClaim")
    assert misfits(cluster["spec"], "RayCluster", "spec") == []
    broken = {"headGroupSpec": {"rayStartParams": {"num-cpus": 0}, "templat": {}}}
    assert misfits(broken, "RayCluster", "spec") == [
        "spec.headGroupSpec.rayStartParams is {'num-cpus': 0}",
        "spec.headGroupSpec has no field templat",
    ]


def test_every_pod_of_the_manifest_sees_the_shared_disk_and_starts_ray(kuberay):
    claim, cluster = kuberay
    for group in groups(cluster):
        (container,) = group["template"]["spec"]["containers"]
        volumes = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in group["template"]["spec"]["volumes"]
        }
        assert [volumes[mount["name"]] for mount in container["volumeMounts"]] == [claim["metadata"]["name"]]
        assert "$KUBERAY_GEN_RAY_START_CMD" in container["args"][0], "the annotation leaves it to us"
        limits = container["resources"]["limits"]
        assert all(limits[name] == amount for name, amount in container["resources"]["requests"].items() if name in limits)
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert cluster["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"


def test_every_ray_start_and_dreamkiln_up_has_options_that_exist():
    from ray.scripts.scripts import start

    app = typer.Typer()
    app.command()(up.command)
    ours = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
    rays = {option for parameter in start.params for option in parameter.opts}
    seen = set()
    for text in TEXTS:
        for command, known in (("dreamkiln up", ours), ("ray start", rays)):
            for options in options_after(command, text.read_text()):
                assert options <= known, f"{text.name}: {command} {sorted(options - known)}"
                seen |= options
    assert {"--address", "--ledger", "--job-cpus", "--metrics-export-port"} <= seen


def test_no_dreamkiln_up_leaves_its_ledger_in_a_state_folder_on_the_shared_disk():
    """By default the ledger is a SQLite file in the state folder, and SQLite cannot lock files on NFS."""
    texts = [text.read_text() for text in TEXTS]
    calls = [(options, text) for text in texts for options in options_after("dreamkiln up", text) if "--state" in options]
    assert len(calls) == 3
    assert all("--ledger" in options or "name: DREAMKILN_LEDGER" in text for options, text in calls)


def options_after(command: str, text: str) -> list[set[str]]:
    """The options of each of a command's calls in a text, whose lines may be folded."""
    calls = re.findall(rf"(?<![\w`'])(?:{command}) ((?:[^\n`'#|&>]|\n +(?=--))*)", text)
    return [{word.partition("=")[0] for word in shlex.split(call, posix=False) if word.startswith("--")} for call in calls]
