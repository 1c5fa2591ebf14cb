"""Services and the names by which pods find them."""

from k8s.check.pods import effective_pods
from k8s.check.services import backends, find, services, target_of
from tests.k8s import sample


def test_the_head_service_is_kuberays() -> None:
    known, pods = services(sample.documents()), effective_pods(sample.documents())
    head = find("unlearn-head-svc", known, "unlearning")
    assert head is not None
    assert head.headless
    assert [(port.name, port.number) for port in head.ports] == [("dashboard", 8265), ("gcs-server", 6379), ("metrics", 8080)]
    assert [pod.name for pod in backends(head, pods)] == ["unlearn-head"]


def test_a_head_that_names_no_ports_gets_the_usual_ones() -> None:
    document = sample.cluster()
    del document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert {port.name for port in services([document])[0].ports} == {"client", "gcs-server", "dashboard", "metrics", "serve"}


def test_a_ray_service_is_found_by_its_own_name() -> None:
    known, pods = services([sample.service()]), effective_pods([sample.service()])
    head, serve = (find(f"champion-{kind}-svc", known, "unlearning") for kind in ("head", "serve"))
    assert head is not None
    assert serve is not None
    assert [pod.name for pod in backends(head, pods)] == ["champion-head"]
    assert [pod.name for pod in backends(serve, pods)] == ["champion-head", "champion-worker-cpu"]
    assert [(port.name, port.number) for port in serve.ports] == [("serve", 8000)]


def test_names_are_resolved_as_in_a_cluster() -> None:
    known = services(sample.documents())
    full = "mlflow.unlearning.svc.cluster.local"
    assert all(find(host, known, "elsewhere") for host in ("mlflow.unlearning", "mlflow.unlearning.svc", full))
    assert find("mlflow", known, "unlearning")
    assert find("mlflow", known, "elsewhere") is None
    assert find("mlflow.other", known, "unlearning") is None


def test_a_named_target_is_a_port_of_the_container() -> None:
    pods = effective_pods(sample.documents())
    service = find("mlflow", services(sample.documents()), "unlearning")
    assert service is not None
    assert [target_of(service.ports[0], pod) for pod in backends(service, pods)] == [5000]
    assert target_of(service.ports[0], pods[0]) is None
