"""What runs the server elsewhere: names, ports, paths and times are the server's own.

Kubernetes' objects are checked by its schemas. Those of Compose and of custom resources
come with no package: their fields are checked one by one, and the Dockerfile by its
instructions. Nothing is built here.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from nim4_jax.launch import cli
from nim4_jax.serving.server import config, door, running
from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.metrics import Metrics

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
GIB, MIB = 1 << 30, 1 << 20
VERSIONS = ("1.30", "1.34")
NAMES = ("deployment", "service", "hpa", "pdb")


def read_yaml(name):
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf8"))


def read_object(name):
    return read_yaml(f"kubernetes/{name}.yaml")


def read_dockerfile():
    """Instructions of the last stage, and their arguments on one line."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).split("\n")
    steps = [tuple(line.split(" ", 1)) for line in joined if line]
    last = max(place for place, (word, _) in enumerate(steps) if word == "FROM")
    return steps, steps[last:]


def find_environment(steps):
    words = [
        word for kind, rest in steps if kind == "ENV" for word in shlex.split(rest)
    ]
    return dict(word.split("=", 1) for word in words)


def check_settings(values):
    """Names and values that the server takes; what it makes of them."""
    own = {k: v for k, v in values.items() if k.startswith(config.PREFIX)}
    return config.read("", own)


def parse_size(text):
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()
    return int(number) * {"Mi": MIB, "Gi": GIB}[unit]


@pytest.fixture
def image():
    """Settings that the image has."""
    return find_environment(read_dockerfile()[1])


@pytest.fixture
def pod():
    return read_object("deployment")["spec"]["template"]["spec"]


@pytest.fixture
def container(pod):
    (one,) = pod["containers"]
    return one


@pytest.fixture
def settings(image, container):
    """Of a pod's server."""
    own = {entry["name"]: entry["value"] for entry in container["env"]}
    return check_settings({**image, **own})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_kubernetes_takes_them(name, version):
    kubernetes_validate.validate(read_object(name), version, strict=True)


def test_the_schemas_find_what_is_wrong():
    wrong = read_object("deployment")
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_image_starts_the_server(image):
    """Not as root, with a command and settings that there are; nothing is fetched."""
    steps, last = read_dockerfile()
    arguments = dict(last)
    nim4, command = json.loads(arguments["ENTRYPOINT"])
    assert nim4 == "nim4" and command in cli.COMMANDS
    made = check_settings(image)
    assert made.port == int(arguments["EXPOSE"]) == ServerConfig().port
    assert not made.local and made.model == "/model"
    assert int(arguments["USER"]) >= 1_000
    assert arguments["STOPSIGNAL"] == "SIGTERM"
    assert all("slim" in rest for word, rest in steps if word == "FROM")
    assert not re.search(r"curl|wget|huggingface|:latest", str(steps))
    extra = re.search(r"nim4-jax\[(\w+)\]", str(steps))[1]
    assert f'"{extra}":' in (ROOT / "setup.py").read_text(encoding="utf8")


def test_the_image_has_what_is_installed():
    """setup.py, what it reads, and every package."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf8")
    kept = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    parts = re.search(r"PARTS = \((.*?)\)", (ROOT / "setup.py").read_text("utf8"))[1]
    packages = re.findall(r'"(\w+)"', parts)
    assert {*packages, "nim4_jax", "setup.py", "pyproject.toml", "README.md"} <= kept


def test_the_healthcheck_asks_a_live_server(server):
    """The very command, against a server and against none."""
    _, last = read_dockerfile()
    python, *rest = json.loads(dict(last)["HEALTHCHECK"].partition("CMD ")[2])
    assert python == "python"
    port = server.address.partition(":")[2]
    codes = [
        subprocess.run(
            [sys.executable, *rest],
            env={"NIM4_SERVE_PORT": number},
            stderr=subprocess.DEVNULL,
            check=False,
        ).returncode
        for number in (port, "1")
    ]
    assert codes == [0, 1]


def test_compose_runs_the_image(image):
    """With a key, a model to read, and time for the last words."""
    found = read_yaml("compose.yaml")
    assert set(found) == {"services", "volumes"}
    (service,) = found["services"].values()
    build = service["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    own = service["environment"]
    assert own.pop(config.KEYS).startswith("${NIM4_SERVE_KEYS:?")
    plain = {k: re.sub(r"\$\{\w+:-(.*)\}", r"\1", v) for k, v in own.items()}
    made = check_settings({**image, **plain})
    last = made.grace_seconds + running._LAST_SECONDS
    assert int(service["stop_grace_period"].removesuffix("s")) > last
    (port,) = service["ports"]
    assert port == f"127.0.0.1:8000:{made.port}"
    model, cache = service["volumes"]
    assert model.endswith(f":{made.model}:ro")
    name, place = cache.split(":")
    assert name in found["volumes"] and place == image["XDG_CACHE_HOME"]
    assert service["read_only"] and "/tmp" in service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]


def test_probes_ask_what_the_server_answers(settings, container):
    """Ready: from the last program compiled until it is asked to end."""
    paths = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "readiness", "liveness")
    }
    live, ready = door.PROBES
    assert paths == {"startup": ready, "readiness": ready, "liveness": live}
    (port,) = container["ports"]
    assert port["containerPort"] == settings.port
    for kind in paths:
        assert container[f"{kind}Probe"]["httpGet"]["port"] == port["name"]
    assert container["readinessProbe"]["failureThreshold"] == 1


def test_a_pod_that_ends_lets_streams_end(settings, pod, container):
    """Kubernetes' patience is longer than all that the server may take."""
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    ready = container["readinessProbe"]
    assert command == "sleep" and int(seconds) > 2 * ready["periodSeconds"]
    last = int(seconds) + settings.grace_seconds + running._LAST_SECONDS
    assert pod["terminationGracePeriodSeconds"] > last


def test_a_pod_has_the_room_that_its_settings_need(settings, container, pod):
    """Memory of decoders beside the server's, and disk of uploads."""
    memory = parse_size(container["resources"]["limits"]["memory"])
    decoders = settings.files * settings.decode_mib * MIB
    assert memory - decoders >= parse_size(container["resources"]["requests"]["memory"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    uploads = (settings.files + settings.waiting_files) * settings.upload_mib * MIB
    assert parse_size(volumes["tmp"]["emptyDir"]["sizeLimit"]) > uploads


def test_what_a_pod_mounts_is_where_the_server_looks(image, settings, container, pod):
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert mounts["model"]["mountPath"] == settings.model == image["NIM4_SERVE_MODEL"]
    assert mounts["cache"]["mountPath"] == image["XDG_CACHE_HOME"]
    keys = Path(settings.keys_file)
    assert str(keys.parent) == mounts["keys"]["mountPath"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (item,) = volumes["keys"]["secret"]["items"]
    assert item["path"] == keys.name
    user = dict(read_dockerfile()[1])["USER"]
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_pods_are_as_many_as_streams_need(settings):
    """The metric is one of /metrics, and grows before pods are full."""
    scaler = read_object("hpa")["spec"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    names = {family.name for family in Metrics().registry.collect()}
    assert name in names
    target = int(metric["pods"]["target"]["averageValue"])
    assert target == settings.streams * 3 // 4
    deployment = read_object("deployment")
    assert "replicas" not in deployment["spec"]  # an apply would undo the scaler's
    aim = scaler["scaleTargetRef"]
    assert aim["kind"] == "Deployment" and aim["name"] == deployment["metadata"]["name"]


def test_objects_find_each_other(container):
    """Selectors, ports and secrets."""
    deployment = read_object("deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    monitor = read_object("podmonitor")["spec"]
    assert deployment["selector"]["matchLabels"] == labels
    assert read_object("service")["spec"]["selector"] == labels
    assert read_object("pdb")["spec"]["selector"]["matchLabels"] == labels
    assert monitor["selector"]["matchLabels"] == labels
    (port,) = read_object("service")["spec"]["ports"]
    (scrape,) = monitor["podMetricsEndpoints"]
    assert port["targetPort"] == scrape["port"] == container["ports"][0]["name"]
    assert scrape["path"] == "/metrics"
    listed = read_object("kustomization")["resources"]
    files = {path.name for path in (DEPLOY / "kubernetes").iterdir()}
    assert {*listed, "kustomization.yaml"} == files
    secret = scrape["authorization"]["credentials"]["name"]
    text = (DEPLOY / "kubernetes" / "kustomization.yaml").read_text(encoding="utf8")
    assert f"secret generic {secret} " in text
