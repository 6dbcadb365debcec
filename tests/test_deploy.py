"""deploy/ against the rest: paths, ports, keys and times that have to agree, read without docker or a cluster."""

import re
import shlex
import tomllib

import pytest
import yaml

from conftest import composed
from unitsphere import paths
from unitsphere.cli.main import VERBS
from unitsphere.serving.app import ENDPOINTS

ROOT = paths.conf().parent
DEFAULTS = composed("model=x", root="serve")


@pytest.fixture
def dockerfile():
    """(instruction, what follows) of each line."""
    text = re.sub(r"\\\n", " ", (ROOT / "deploy" / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.strip().split(" ", 1)) for line in lines]


@pytest.fixture
def kubernetes():
    return {one["kind"]: one for one in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())}


def test_the_image_is_built_from_what_is_there(dockerfile):
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()
    sources = [p for kind, rest in dockerfile if kind == "COPY" and "--from" not in rest for p in rest.split()[:-1]]
    assert len(sources) > 4
    for source in sources:
        assert (ROOT / source).exists() and f"!{source}" in ignore, source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert needed <= set(sources)
    only = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {one.split("/")[0] for one in only} <= set(sources)
    assert "[serve]" in str(dockerfile) and "serve" in project["project"]["optional-dependencies"]


def test_torch_without_cuda_comes_from_an_index_and_what_it_needs_from_another(dockerfile):
    (line,) = (rest for kind, rest in dockerfile if kind == "RUN" and "--index-url" in rest)
    words = shlex.split(line)
    assert words[words.index("--index-url") + 1].endswith("/whl/cpu") and words[: words.index("&&")][-1] == "torch"
    assert words[words.index("--extra-index-url") + 1] == "https://pypi.org/simple"
    assert "torch.version.cuda is None" in words[-1]


def test_the_image_runs_the_verb_as_nobody_in_particular(dockerfile):
    of = dict(dockerfile)
    program, verb, *overrides = yaml.safe_load(of["ENTRYPOINT"])
    assert program == "unitsphere" and verb in VERBS
    config = composed(*overrides, *yaml.safe_load(of["CMD"]), root="serve")
    assert config.host == "0.0.0.0" and config.model == "/model"
    assert int(of["EXPOSE"]) == config.port and of["USER"].isdecimal() and int(of["USER"]) > 0
    check = shlex.split(of["HEALTHCHECK"])
    url = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", of["HEALTHCHECK"])
    assert int(url[1]) == config.port and url[2] == "/health" and "CMD" in check


def test_the_manifest_agrees_with_the_service(kubernetes, dockerfile):
    assert set(kubernetes) == {"Deployment", "Service", "HorizontalPodAutoscaler"}
    pod = kubernetes["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    config = composed(*container["args"], root="serve")  # every argument is a key
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": config.port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        assert get["path"] == "/health" and get["port"] in ports
    notes = pod["metadata"]["annotations"]
    assert int(notes["prometheus.io/port"]) == config.port and notes["prometheus.io/path"] in ENDPOINTS
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["spec"]["terminationGracePeriodSeconds"] >= before + config.grace_seconds + 5
    assert config.api_key_env in {one["name"] for one in container["env"]}
    assert config.threads == int(container["resources"]["requests"]["cpu"])
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert config.model in mounted and {v["name"] for v in pod["spec"]["volumes"]} == set(mounted.values())
    user = dict(dockerfile)["USER"]
    assert pod["spec"]["securityContext"]["runAsUser"] == int(user)


def test_the_service_and_the_autoscaler_point_at_the_deployment(kubernetes):
    deployment, service, scaler = (kubernetes[k] for k in ("Deployment", "Service", "HorizontalPodAutoscaler"))
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (deployment["apiVersion"], deployment["kind"])
    assert target["name"] == deployment["metadata"]["name"] and "replicas" not in deployment["spec"]
    assert scaler["spec"]["minReplicas"] >= 2
