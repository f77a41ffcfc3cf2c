"""Files of `infra/`: in every run that they name what exists; in `make test-infra` what their own tools say of them."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "build/infra-tools/bin"
UNITS = sorted((ROOT / "infra/systemd").glob("*.service"))
MANIFESTS = ROOT / "infra/kubernetes"


def test_deployments_name_flows_and_parameters_that_exist():
    deployments = yaml.safe_load((ROOT / "infra/prefect.yaml").read_text())["deployments"]
    assert {d["name"] for d in deployments} >= {"scene", "collection", "watch", "export", "bench"}
    for deployment in deployments:
        module, function = deployment["entrypoint"].rsplit(".", 1)
        text = (ROOT / f"{module.removeprefix('ovrs.').replace('.', '/')}.py").read_text()
        assert f"def {function}(" in text
        for parameter in deployment.get("parameters", {}):
            assert f"{parameter}:" in text


def test_services_and_images_name_what_exists():
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())
    wanted = {
        "database",
        "prefect",
        "deployments",
        "flows",
        "scheduler",
        "worker-cpu",
        "worker-gpu",
        "objects",
        "bucket",
    }
    assert wanted == set(compose["services"])
    for service in compose["services"].values():
        for needed in service.get("depends_on", []):
            assert needed in compose["services"]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in {*compose["volumes"], "${OVRS_INCOMING_FOLDER"}
    copied = [line.split() for line in (ROOT / "infra/Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    for words in copied:
        assert all((ROOT / w).exists() for w in words[1:-1]), words


def test_services_are_bounded_checked_and_unprivileged():
    """Every service has limits, no capability, a read-only system and a pinned image; those that stay have a check."""
    compose = yaml.safe_load((ROOT / "infra/compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys(), name
        assert ":" in service["image"].removeprefix("${").split(":-")[-1], name
        assert "healthcheck" in service or service["restart"] == "no", name
        for needed, how in service.get("depends_on", {}).items():
            ends = compose["services"][needed]["restart"] == "no"
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy"), name
    environment = compose["services"]["prefect"]["environment"]
    assert {"PREFECT_API_URL", "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_UI_API_URL"} <= environment.keys()


def test_the_image_is_for_an_unprivileged_user_and_a_read_only_system():
    lines = (ROOT / "infra/Dockerfile").read_text().splitlines()
    (user,) = [line for line in lines if line.startswith("USER ")]
    assert user == "USER 10001:10001"
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert not any(":latest" in line for line in lines)
    extras = next(line for line in lines if 'constraints.txt ".' in line).split("[")[1].split("]")[0].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) <= known.keys()
    assert any("bokeh" in need for need in known["cluster"])


def test_the_alert_loads():
    from prefect.events.schemas.automations import AutomationCore

    alert = AutomationCore.model_validate(yaml.safe_load((ROOT / "infra/automation.yaml").read_text()))
    assert alert.trigger.expect == {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
    assert alert.actions[0].subject
    killed = AutomationCore.model_validate(yaml.safe_load((ROOT / "infra/automation-killed.yaml").read_text()))
    assert killed.trigger.within.total_seconds() == 90
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in (ROOT / "infra/compose.yaml").read_text()


def test_pods_are_unprivileged_and_reach_what_they_need():
    documents = [d for d in yaml.safe_load_all((MANIFESTS / "dask-cluster.yaml").read_text()) if d]
    kinds = {d["kind"]: d for d in documents}
    assert set(kinds) == {"ServiceAccount", "DaskCluster", "NetworkPolicy", "DaskAutoscaler"}
    cluster = kinds["DaskCluster"]["spec"]
    for pod in (cluster["worker"]["spec"], cluster["scheduler"]["spec"]):
        assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001}.items()
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["resources"]["limits"]["memory"]
        assert not any("persistentVolumeClaim" in volume for volume in pod["volumes"])
    worker = cluster["worker"]["spec"]
    assert worker["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert worker["containers"][0]["envFrom"] == [{"secretRef": {"name": "ovrs-objects", "optional": True}}]


CHART = {
    "apiConfig", "args", "command", "config", "containerSecurityContext", "extraEnvVars", "extraEnvVarsSecret", "image",
    "livenessProbe", "podSecurityContext", "resources", "selfHostedServerApiConfig",
}  # fmt: skip
"""Keys of `worker` in the values of Prefect's chart that we use; the chart refuses unknown ones."""


def test_values_of_the_prefect_worker_fit_its_chart_and_our_image():
    values = yaml.safe_load((MANIFESTS / "prefect-worker-values.yaml").read_text())
    worker = values["worker"]
    assert worker.keys() <= CHART
    assert values.keys() <= {"worker", "role", "rolebinding", "serviceAccount"}
    assert worker["config"].keys() <= {"workPool", "type", "limit", "name", "installPolicy", "workQueues"}
    assert worker["command"] == ["/usr/bin/env"]  # the chart's own entry point is not in our image
    assert worker["containerSecurityContext"]["readOnlyRootFilesystem"]
    names = [v["name"] for v in worker["extraEnvVars"]]
    assert not {"HOME", "PREFECT_API_URL"} & set(names)  # the chart sets them
    assert not any(str(v["value"]).startswith("/data") for v in worker["extraEnvVars"])  # only /tmp can be written to


def said(*command, **more):
    """What a tool says of a file; fails with it when the tool is not content."""
    done = subprocess.run([str(c) for c in command], check=False, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.infra
def test_compose_file_is_valid(tmp_path):
    said(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "infra/compose.yaml")
    lines = (ROOT / "infra/compose.yaml").read_text().splitlines(keepends=True)
    older = tmp_path / "compose.yaml"  # Debian's docker-compose does not know a name at the top yet
    older.write_text("".join(line for line in lines if not line.startswith("name:")))
    secrets = {"OVRS_DB_PASSWORD": "a", "OVRS_S3_PASSWORD": "b"}
    found = yaml.safe_load(said("docker-compose", "-f", older, "config", env={**os.environ, **secrets}))
    assert found["services"]["prefect"]["environment"]["PREFECT_API_DATABASE_CONNECTION_URL"].startswith("postgresql")
    missing = subprocess.run(
        ["docker-compose", "-f", str(older), "config"], check=False, capture_output=True, text=True
    )
    assert missing.returncode != 0
    assert "set OVRS_" in missing.stderr


@pytest.mark.infra
def test_image_is_lint_free():
    said(TOOLS / "hadolint", "--failure-threshold", "warning", ROOT / "infra/Dockerfile")


@pytest.mark.infra
def test_manifests_are_valid(tmp_path):
    """Plain resources against Kubernetes' schemas, the cluster against the definition that the Dask operator installs."""
    documents = [d for d in yaml.safe_load_all((MANIFESTS / "dask-cluster.yaml").read_text()) if d]
    plain = [d for d in documents if "dask.org" not in d["apiVersion"]]
    assert plain
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump_all(plain))
    assert "passed" in said(TOOLS / "kubernetes-validate", "--strict", tmp_path / "plain.yaml")
    scaler = next(d for d in documents if d["kind"] == "DaskAutoscaler")
    check_custom(scaler)
    for cluster in (d for d in documents if d["kind"] == "DaskCluster"):
        check_custom(cluster)


def check_custom(cluster):
    """Against the definition in the operator's chart; keys that it does not list are faults."""
    import jsonschema

    definition = next((TOOLS.parent / "lib").rglob(f"dask-kubernetes-operator/crds/{cluster['kind'].lower()}.yaml"))
    version = yaml.safe_load(definition.read_text())["spec"]["versions"][0]
    assert cluster["apiVersion"].endswith("/" + version["name"])
    jsonschema.validate(cluster["spec"], closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))


def closed(schema):
    """The schema, but a key that it does not list is a fault: Kubernetes would drop it without a word."""
    if isinstance(schema, list):
        return [closed(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    found = {k: closed(v) for k, v in schema.items()}
    if isinstance(found.get("properties"), dict) and found.get("type") == "object":
        open_ended = "additionalProperties" in found or found.get("x-kubernetes-preserve-unknown-fields")
        if found["properties"] and not open_ended:
            found["additionalProperties"] = False
    return found


@pytest.mark.infra
def test_a_misspelt_manifest_would_be_found():
    import jsonschema

    documents = yaml.safe_load_all((MANIFESTS / "dask-cluster.yaml").read_text())
    cluster = next(d for d in documents if d["kind"] == "DaskCluster")
    wrong = json.loads(json.dumps(cluster).replace("nodeSelector", "nodeSelektor"))
    with pytest.raises(jsonschema.ValidationError, match="nodeSelektor"):
        check_custom(wrong)


@pytest.mark.infra
@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.stem)
def test_systemd_accepts_the_units(unit, tmp_path):
    """With the programs where this environment has them, since systemd looks whether they exist."""
    text = unit.read_text()
    assert "/opt/ovrs/.venv/bin/" in text
    (tmp_path / unit.name).write_text(text.replace("/opt/ovrs/.venv/bin", str(Path(sys.executable).parent)))
    complaints = said("systemd-analyze", "verify", tmp_path / unit.name)
    assert unit.name not in complaints, complaints


@pytest.mark.infra
@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.stem)
def test_units_are_hardened(unit):
    """`systemd-analyze security` rates exposure from 0 (none) to 10."""
    level = said("systemd-analyze", "security", "--offline=yes", unit).strip().splitlines()[-1]
    assert float(level.split(": ")[1].split()[0]) < 2.5, level


@pytest.mark.infra
def test_tools_are_there():
    assert all(shutil.which(tool) for tool in ("docker-compose", "systemd-analyze"))
