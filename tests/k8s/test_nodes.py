"""Pods as namespaces, on manifests of a few lines: what a container finds, what it may not do, and that nothing of it stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from grun.errors import ConfigError
from k8s.check.pod import Pod as Template
from k8s.check.services import services
from tests.k8s.nodes import machine
from tests.k8s.nodes.cluster import Cluster
from tests.k8s.nodes.container import effective_identity
from tests.k8s.nodes.environment import container_environment
from tests.k8s.nodes.image import project_image, read_containerfile
from tests.k8s.nodes.machine import missing, require
from tests.k8s.nodes.manifests import Documents, UnsupportedError
from tests.k8s.nodes.pod import Pod, PodError

RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
USER = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000}


def document(kind: str, name: str, **content: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "namespace": "here"}, **content}


DOCUMENTS = [
    document("PersistentVolumeClaim", "shared"),
    document("ConfigMap", "settings", data={"colour": "red", "shape": "round"}),
    document("Secret", "keys", stringData={"token": "sesame"}),
    document(
        "Service", "web", spec={"selector": {"app": "web"}, "ports": [{"name": "http", "port": 8000, "targetPort": "http"}]}
    ),
]

VOLUMES = [
    {"name": "tmp", "emptyDir": {}},
    {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
    {"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}},
    {"name": "settings", "configMap": {"name": "settings", "items": [{"key": "shape", "path": "form/of"}]}},
    {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 0o400}},
]
MOUNTS = [
    {"name": "tmp", "mountPath": "/tmp"},
    {"name": "memory", "mountPath": "/dev/shm"},
    {"name": "shared", "mountPath": "/shared"},
    {"name": "settings", "mountPath": "/etc/settings"},
    {"name": "keys", "mountPath": "/keys"},
]
VARIABLES = [
    {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
    {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
    {"name": "BOTH", "value": "$(COLOUR) at $(WHERE), $(NOTHING) and $$(COLOUR)"},
]


def template(name: str, *command: str, **container: Any) -> Template:
    main: dict[str, Any] = {
        "name": "main",
        "image": "registry/grun-pipelines:1",
        "command": list(command),
        "securityContext": RESTRICTED,
    }
    main |= {"volumeMounts": MOUNTS, "env": VARIABLES, "ports": [{"name": "http", "containerPort": 8000}], **container}
    before = {**main, "name": "before", "command": ["sh", "-c", "echo first >> /shared/order"]}
    spec = {"securityContext": USER, "volumes": VOLUMES, "initContainers": [before], "containers": [main]}
    return Template(name, "here", "Pod/test", "pod", {"app": name}, {}, spec)


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("accounts") / "passwd"
    file.write_text("root:x:0:0::/root:/bin/sh\ngrun:x:1000:1000::/app:/bin/sh\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def cluster(accounts: Path) -> Iterator[Cluster]:
    require()
    with Cluster(DOCUMENTS, services(DOCUMENTS), {"grun-pipelines": project_image(None, accounts)}) as started:
        yield started


@pytest.fixture(scope="module")
def web(cluster: Cluster) -> Pod:
    probe = {"httpGet": {"path": "/order", "port": "http"}}
    serve = "echo second >> /shared/order; exec python -m http.server 8000 --directory /shared"
    pod = cluster.start(template("web", "sh", "-c", serve, readinessProbe=probe))
    cluster.wait_ready(pod)
    return pod


@pytest.fixture(scope="module")
def client(cluster: Cluster, web: Pod) -> Pod:
    pod = cluster.start(template("client", "sleep", "infinity"))
    cluster.wait_ready(pod)
    return pod


def shell(pod: Pod, script: str) -> str:
    done = pod.execute(["sh", "-c", script])
    return done.stdout + done.stderr


def test_init_containers_come_first_and_services_have_names(client: Pod) -> None:
    for name in ("web", "web.here", "web.here.svc", "web.here.svc.cluster.local"):
        assert shell(client, f"wget -qO- -T 5 http://{name}:8000/order").startswith("first\nsecond\n")


def test_a_container_is_nobody_and_can_write_only_to_its_volumes(client: Pod) -> None:
    assert shell(client, "id -u; id -g; id -G").split() == ["1000", "1000", "1000", "2000"]
    status = dict(line.split(":\t", 1) for line in shell(client, "cat /proc/self/status").splitlines() if ":\t" in line)
    assert {status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    writable = "for d in / /app /etc /usr /keys /etc/settings /tmp /dev/shm /shared; do touch $d/x 2>/dev/null && echo $d; done; rm -f /shared/x"
    assert shell(client, writable).split() == ["/tmp", "/dev/shm", "/shared"]
    # and sees no other processes than its own: the first, and this shell
    assert shell(client, "set -- /proc/[0-9]*; echo $#; hostname").split() == ["2", "client"]


def test_volumes_hold_what_they_say(client: Pod) -> None:
    assert shell(client, "cat /etc/settings/form/of /keys/token") == "roundsesame"
    assert shell(client, "stat -c '%u %g %a' /keys/token").split() == ["0", "2000", "440"]
    assert shell(client, "df -m --output=size /dev/shm | tail -1").strip() == "8"


def test_variables_are_those_of_a_kubelet(client: Pod) -> None:
    found = dict(line.split("=", 1) for line in shell(client, "env").splitlines())
    assert found["TOKEN"] == "sesame"
    assert found["BOTH"] == "red at here, $(NOTHING) and $(COLOUR)"
    assert found["WEB_PORT"].startswith("tcp://10.244.")
    assert found["PYTHONPATH"] == "/app"
    assert "HOME" not in found  # nor anything else of this machine


def test_a_container_that_ends_is_told_with_its_log(cluster: Cluster) -> None:
    pod = cluster.start(template("broken", "sh", "-c", "echo no luck; exit 3", readinessProbe={"tcpSocket": {"port": "http"}}))
    with pytest.raises(PodError, match=r"broken: container main ended with 3: no luck"):
        cluster.wait_ready(pod)
    job = cluster.start(template("job", "sh", "-c", "exit 4"))
    assert job.wait_completed(30) == 4


def test_a_pod_that_is_killed_leaves_no_process(cluster: Cluster) -> None:
    pod = cluster.start(template("victim", "sh", "-c", "sleep 54321 & exec sleep 54321"))
    cluster.wait_ready(pod)
    pod.execute(["true"])
    assert len(sleeping("54321")) == 2
    cluster.kill(pod)
    assert not sleeping("54321")


def sleeping(seconds: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline", "status"]) if p.info["cmdline"] == ["sleep", seconds]]


def test_nothing_outlives_the_process_that_started_it(accounts: Path, tmp_path: Path) -> None:
    require()
    lines = (
        "import sys, time; from pathlib import Path",
        "from tests.k8s.test_nodes import *",
        "with Cluster(DOCUMENTS, services(DOCUMENTS), {'grun-pipelines': project_image(None, Path(sys.argv[1]))}) as cluster:",
        "    pod = cluster.start(template('orphan', 'sleep', '65432'))",
        "    cluster.wait_ready(pod); pod.execute(['true']); print(cluster.folder, flush=True); time.sleep(600)",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(accounts)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        folder = parent.stdout.readline().strip()
        orphans = sleeping("65432")
        assert len(orphans) == 1
        parent.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(orphans, timeout=10)
    assert (len(gone), alive) == (1, [])
    assert folder not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    subprocess.run(["rm", "-r", folder], check=True)  # what is left is files


def test_what_a_kubelet_refuses_is_refused() -> None:
    with pytest.raises(PermissionError, match="container c must not run as root, got the user 'grun'; set `runAsUser`"):
        effective_identity({"securityContext": {"runAsNonRoot": True}}, {"name": "c"}, "grun")
    with pytest.raises(UnsupportedError, match=r"no capability can be added here, got \['NET_ADMIN'\]"):
        effective_identity({}, {"name": "c", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}, "0")
    entry = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "absent"}}}
    with pytest.raises(LookupError, match=r"Secret here/keys must hold the key 'absent', got \['token'\]"):
        container_environment(
            {"name": "c", "env": [entry]}, Documents.of(DOCUMENTS), "here", image={}, links={}, fields={}, containers={}
        )


def test_an_image_is_what_the_last_stage_says() -> None:
    text = 'FROM a AS b\nENV X=1\nFROM b AS other\nENV Z=9\nFROM b\n# about\nENV Y="two words" \\\n    Z=3\nWORKDIR /app\nUSER 1000:1000\nCMD ["python", "-V"]\n'
    image = read_containerfile(text)
    assert (image.environment, image.working_dir, image.user) == ({"X": "1", "Y": "two words", "Z": "3"}, "/app", "1000:1000")
    assert image.command == ("python", "-V")


def refuse(message: str) -> str:
    raise ConfigError(message)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(machine, "kubectl", lambda: refuse("rendering needs a `kubectl`"))
    lacking = missing(renders=True)
    assert "root (namespaces, mounts and packet filters need it)" in lacking
    assert "rendering needs a `kubectl`" in lacking
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="pods as namespaces need root"):
        require()
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="pods as namespaces need root"):
        require()
