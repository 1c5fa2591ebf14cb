"""What the days after the first apply rest on: Jobs that go, alerts that do not stay silent, rights that suffice and no more."""

import re
from typing import Any

import pytest

from k8s.check.bundle import Bundle
from k8s.check.pods import title
from k8s.check.strict_yaml import Document


def only(bundle: Bundle, name: str) -> Document:
    """The object of "Kind/name"."""
    (found,) = [document for document in bundle.documents if title(document) == name]
    return found


def alerts(rendered: dict[str, Bundle]) -> dict[str, str]:
    """Expressions by alert, on one line each."""
    groups = only(rendered["overlays/gpu"], "PrometheusRule/unlearning")["spec"]["groups"]
    return {rule["alert"]: " ".join(rule["expr"].split()) for group in groups for rule in group["rules"]}


def verbs(role: Document, resource: str) -> set[str]:
    """What a role allows with a resource."""
    rules: list[Any] = role["rules"]
    return {verb for rule in rules if resource in rule["resources"] for verb in rule["verbs"]}


def test_a_job_goes_so_that_it_can_be_applied_with_another_image(rendered: dict[str, Bundle]) -> None:
    jobs = {title(job): job["spec"] for bundle in rendered.values() for job in bundle.of("Job")}
    assert {"Job/mlflow-migrate", "Job/mlflow-users", "Job/object-store-bucket", "Job/prefetch"} <= jobs.keys()
    assert {name: spec.get("ttlSecondsAfterFinished") for name, spec in jobs.items()} == dict.fromkeys(jobs, 3600)


@pytest.mark.parametrize("name", ["LedgerStalled", "CachesNotPruned"])
def test_a_cron_job_that_never_succeeded_is_an_alert(rendered: dict[str, Bundle], name: str) -> None:
    series = re.findall(r"(kube_cronjob_\w+)\{[^}]*cronjob=\"([a-z-]+)\"", alerts(rendered)[name])
    assert {series for series, _ in series} == {"kube_cronjob_status_last_successful_time", "kube_cronjob_created"}
    (cron,) = {cron for _, cron in series}
    assert only(rendered["base"], f"CronJob/{cron}")


def test_a_cron_job_that_stays_suspended_is_an_alert(rendered: dict[str, Bundle]) -> None:
    pattern = re.search(r'kube_cronjob_spec_suspend\{[^}]*cronjob=~"([^"]+)"\} == 1', alerts(rendered)["CronJobSuspended"])
    assert pattern
    crons = [cron["metadata"]["name"] for cron in rendered["overlays/gpu"].of("CronJob")]
    assert crons == [name for name in crons if re.fullmatch(pattern[1], name)]


def test_who_submits_may_apply_a_sweep_and_no_wall(rendered: dict[str, Bundle]) -> None:
    role = only(rendered["base"], "Role/submit")
    assert {"get", "list", "watch", "create", "patch", "delete"} == verbs(role, "rayjobs"), (
        "an apply from the server's side patches"
    )
    assert not verbs(role, "networkpolicies") | verbs(role, "configmaps") | verbs(role, "pods/exec")


@pytest.mark.parametrize("name", ["workloads/sweep", "overlays/local-cpu/sweep", "overlays/gpu/sweep"])
def test_a_sweep_is_selected_from_what_stands_around_it(rendered: dict[str, Bundle], name: str) -> None:
    selected = [
        title(document)
        for document in rendered[name].documents
        if (document["metadata"].get("labels") or {}).get("app.kubernetes.io/component") == "sweep"
    ]
    assert selected == ["RayJob/sweep"]


def test_an_object_store_that_is_not_awss_is_reached(rendered: dict[str, Bundle]) -> None:
    (settings,) = [m for m in rendered["overlays/gpu"].of("ConfigMap") if "MLFLOW_ARTIFACTS_DESTINATION" in (m.get("data") or {})]
    assert {"MLFLOW_S3_ENDPOINT_URL", "AWS_DEFAULT_REGION"} <= settings["data"].keys()
