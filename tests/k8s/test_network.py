"""NetworkPolicies against cases worked out by hand."""

from typing import Any

import pytest

from grun.errors import ConfigError
from k8s.check.network import Block, Network, PortRange, allowed
from k8s.check.pod import Pod
from k8s.check.strict_yaml import Document, load
from tests.k8s import sample

DENY = "metadata: {name: deny, namespace: unlearning}\nspec: {podSelector: {}, policyTypes: [Ingress, Egress]}\n"
PROMETHEUS = Pod("prometheus", "monitoring", "Pod/prometheus", "pod", {"app": "prometheus"}, {}, {"containers": []})


def policy(text: str) -> Document:
    return load(f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n{text}", where="policy")[0]


def rules(name: str, selector: str, **directions: Any) -> Document:
    document = policy(f"metadata: {{name: {name}, namespace: unlearning}}\nspec: {{podSelector: {selector}}}\n")
    document["spec"] |= {**directions, "policyTypes": [direction.capitalize() for direction in directions]}
    return document


def network(*policies: Document, **options: Any) -> Network:
    return Network([*sample.documents(), *policies], **options)


def test_without_policies_everybody_may_speak() -> None:
    assert allowed(sample.documents(), "mlflow", "postgres", 5432)
    assert allowed(sample.documents(), "mlflow", "203.0.113.9", 443)


def test_denying_everything_leaves_a_pod_to_itself() -> None:
    closed = network(policy(DENY))
    assert not closed.allowed("mlflow", "postgres", 5432)
    assert not closed.allowed("203.0.113.9", "mlflow", 5000)
    assert not closed.allowed("mlflow", "203.0.113.9", 443)
    assert closed.allowed("mlflow", "mlflow", 5000)
    assert closed.ingress("mlflow") == []


def test_both_ends_have_to_agree() -> None:
    out = rules("out", "{matchLabels: {app: mlflow}}", egress=[{"to": [{"podSelector": {"matchLabels": {"app": "postgres"}}}]}])
    into = rules(
        "in", "{matchLabels: {app: postgres}}", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "mlflow"}}}]}]
    )
    assert not network(policy(DENY), out).allowed("mlflow", "postgres", 5432)
    assert not network(policy(DENY), into).allowed("mlflow", "postgres", 5432)
    both = network(policy(DENY), out, into)
    assert both.allowed("mlflow", "postgres", 5432)
    assert not both.allowed("postgres", "mlflow", 5000)  # a direction, not a pair


def test_policies_add_up_and_default_to_ingress() -> None:
    only = policy("metadata: {name: a, namespace: unlearning}\nspec: {podSelector: {matchLabels: {app: postgres}}}")
    assert not network(only).allowed("mlflow", "postgres", 5432)
    assert network(only).allowed("postgres", "203.0.113.9", 443)
    opened = rules("b", "{}", ingress=[{"ports": [{"port": 5432}]}])
    assert network(only, opened).allowed("203.0.113.9", "postgres", 5432)
    assert not network(only, opened).allowed("203.0.113.9", "postgres", 22)
    with_egress = policy(
        "metadata: {name: a, namespace: unlearning}\nspec: {podSelector: {matchLabels: {app: postgres}}, egress: []}"
    )
    assert not network(with_egress).allowed("postgres", "203.0.113.9", 443)


@pytest.mark.parametrize(
    ("port", "number", "protocol", "expected"),
    [
        ({"port": "http"}, 5000, "TCP", True),
        ({"port": "http"}, 5001, "TCP", False),
        ({"port": "http", "protocol": "UDP"}, 5000, "UDP", False),
        ({"port": 5000, "endPort": 5010}, 5010, "TCP", True),
        ({"port": 5000, "endPort": 5010}, 5011, "TCP", False),
        ({"protocol": "UDP"}, 7, "UDP", True),
        ({"protocol": "UDP"}, 7, "TCP", False),
        ({"port": 53}, 53, "UDP", False),
    ],
)
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_ports(direction: str, port: dict[str, Any], number: int, protocol: str, expected: bool) -> None:
    selector = {"ingress": "{matchLabels: {app: mlflow}}", "egress": "{matchLabels: {app: postgres}}"}[direction]
    found = network(rules("p", selector, **{direction: [{"ports": [port]}]}))
    assert found.allowed("postgres", "mlflow", number, protocol) is expected


def test_a_selector_alone_means_its_own_namespace() -> None:
    near: list[Any] = [{"from": [{"podSelector": {}}]}]
    far = [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]}]
    far_and_other = [{"from": [{**far[0]["from"][0], "podSelector": {"matchLabels": {"app": "grafana"}}}]}]
    far_or_other = [{"from": [far[0]["from"][0], {"podSelector": {"matchLabels": {"app": "grafana"}}}]}]
    for ingress, from_near, from_far in (
        (near, True, False),
        (far, False, True),
        (far_and_other, False, False),
        (far_or_other, False, True),
    ):
        found = network(rules("p", "{}", ingress=ingress), strangers=[PROMETHEUS])
        assert (found.allowed("mlflow", "postgres", 1), found.allowed("prometheus", "postgres", 1)) == (from_near, from_far)


def test_namespaces_are_found_by_their_labels() -> None:
    ingress = [{"from": [{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]}}]}]
    namespace = {"kind": "Namespace", "metadata": {"name": "monitoring", "labels": {"team": "a"}}}
    assert network(rules("p", "{}", ingress=ingress), namespace, strangers=[PROMETHEUS]).allowed("prometheus", "mlflow", 1)
    assert not network(rules("p", "{}", ingress=ingress), strangers=[PROMETHEUS]).allowed("prometheus", "mlflow", 1)


def test_blocks_of_addresses() -> None:
    outside = rules("p", "{}", egress=[{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}])
    assert network(outside).allowed("mlflow", "203.0.113.9", 443)
    assert not network(outside).allowed("mlflow", "10.9.9.9", 443)
    assert not network(outside).allowed("mlflow", "postgres", 5432)  # pods are inside
    assert network(outside, addresses={"postgres": "192.168.0.2"}).allowed("mlflow", "postgres", 5432)


def test_expressions() -> None:
    def reaches(**expression: Any) -> bool:
        return network(rules("p", "{}", ingress=[{"from": [{"podSelector": {"matchExpressions": [expression]}}]}])).allowed(
            "mlflow", "postgres", 1
        )

    assert reaches(key="app", operator="In", values=["mlflow"])
    assert not reaches(key="app", operator="NotIn", values=["mlflow"])
    assert reaches(key="other", operator="NotIn", values=["mlflow"])
    assert reaches(key="app", operator="Exists")
    assert not reaches(key="app", operator="DoesNotExist")


def test_allowances_are_resolved_for_whoever_enforces_them() -> None:
    ingress = [
        {
            "from": [{"podSelector": {"matchLabels": {"ray.io/cluster": "unlearn"}}}],
            "ports": [{"port": "http"}, {"port": 53, "protocol": "UDP"}],
        },
        {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.7/32"]}}]},
        {"ports": [{"port": "absent"}]},
    ]
    first, second, third = network(rules("p", "{}", ingress=ingress)).ingress("mlflow") or []
    assert [pod.name for pod in first.pods] == ["unlearn-head", "unlearn-worker-cpu"]
    assert first.ports == (PortRange(5000, 5000, "TCP"), PortRange(53, 53, "UDP"))
    assert (second.blocks, second.ports, second.pods, second.anybody) == (
        (Block("192.0.2.0/24", ("192.0.2.7/32",)),),
        None,
        (),
        False,
    )
    assert (third.anybody, third.ports) == (True, ())  # nobody, as no port has that name
    assert network(rules("p", "{}", ingress=ingress)).egress("mlflow") is None


def test_a_name_that_is_nobodys_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a pod or an address, got 'mlfow'"):
        allowed(sample.documents(), "mlfow", "postgres", 1)
