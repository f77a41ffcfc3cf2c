"""Files of `infra/`: in every run that they name what exists; in `make test-infra` what their own tools say of them."""

import json
import os
import shutil
import subprocess
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
    assert {"database", "prefect", "flows", "scheduler", "worker-cpu", "worker-gpu", "objects"} == set(
        compose["services"]
    )
    for service in compose["services"].values():
        for needed in service.get("depends_on", []):
            assert needed in compose["services"]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"]
    copied = [line.split() for line in (ROOT / "infra/Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    for words in copied:
        assert all((ROOT / w).exists() for w in words[1:-1]), words


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
    plain = [d for d in documents if "/" not in d["apiVersion"]]
    assert plain
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump_all(plain))
    assert "passed" in said(TOOLS / "kubernetes-validate", "--strict", tmp_path / "plain.yaml")
    for cluster in (d for d in documents if d["kind"] == "DaskCluster"):
        check_cluster(cluster)


def check_cluster(cluster):
    """Against the definition in the operator's chart; keys that it does not list are faults."""
    import jsonschema

    definition = next((TOOLS.parent / "lib").rglob("dask-kubernetes-operator/crds/daskcluster.yaml"))
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

    cluster = next(yaml.safe_load_all((MANIFESTS / "dask-cluster.yaml").read_text()))
    wrong = json.loads(json.dumps(cluster).replace("nodeSelector", "nodeSelektor"))
    with pytest.raises(jsonschema.ValidationError, match="nodeSelektor"):
        check_cluster(wrong)


@pytest.mark.infra
@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.stem)
def test_systemd_accepts_the_units(unit, tmp_path):
    """With the programs where this environment has them, since systemd looks whether they exist."""
    text = unit.read_text()
    assert "/opt/ovrs/.venv/bin/" in text
    (tmp_path / unit.name).write_text(text.replace("/opt/ovrs/.venv/bin", str(ROOT / ".venv/bin")))
    complaints = said("systemd-analyze", "verify", tmp_path / unit.name)
    assert unit.name not in complaints, complaints


@pytest.mark.infra
def test_tools_are_there():
    assert all(shutil.which(tool) for tool in ("docker-compose", "systemd-analyze"))
