"""What every run records in MLflow, and how the driver follows a training run through its spool."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from grun.adapters import read_card
from grun.certificate import Certificate
from grun.config import Recipe
from grun.errors import PromotionError, near_miss
from grun.requests import UnlearningRequest
from pipelines.console import note
from pipelines.following import Spool, shipping
from pipelines.registry import Registry
from pipelines.tracking import Tracker

__all__ = ["check_is_demo", "flag_rows", "following", "record_flags", "record_request", "register"]

_SHIP_SECONDS = 2.0


def record_request(tracker: Tracker, run_id: str, request: UnlearningRequest) -> None:
    """Record the request's data sets, by digest and never by text."""
    for context in ("forget", "retain", "holdout"):
        source = getattr(request, context)
        tracker.log_dataset(
            run_id,
            name=f"{request.id}-{context}",
            digest=source.digest,
            context=context,
            num_rows=source.num_records,
            source_kind=source.kind,
        )


def check_is_demo(recipe: Recipe, tracker: Tracker) -> None:
    """Refuse to train in passing for anything but the embedded demonstration: a misspelt request would be answered by another adapter.

    Raises:
        PromotionError: with the models that are registered.
    """
    default = Recipe()
    if (recipe.request.id, recipe.data.kind) == (default.request.id, default.data.kind):
        return
    known = Registry(tracker).names()
    raise PromotionError(
        f"an adapter must be registered before it is scored or promoted, got none as {recipe.registered_model}"
        f"{near_miss(recipe.registered_model, known)}; registered are {', '.join(known) or 'none'}: check `request.id`, or run sweep or "
        "train with the same options first"
    )


def record_flags(tracker: Tracker, run_id: str, flags: Mapping[str, str]) -> None:
    """Say what is wrong with an adapter that was trained to the end, and put it on its run."""
    for name, reason in flags.items():
        note(f"flagged, {name}: {reason}")
    tracker.tag(run_id, _flag_tags(flags))


def flag_rows(flags: Mapping[str, str]) -> dict[str, str]:
    """The same as lines of a summary."""
    return {f"flagged {name}": reason for name, reason in flags.items()}


def _flag_tags(flags: Mapping[str, str]) -> dict[str, str]:
    return {f"flag.{name}": reason for name, reason in flags.items()}


def register(tracker: Tracker, recipe: Recipe, run_id: str, adapter: Path, flags: Mapping[str, str]) -> int:
    """Register an adapter as the candidate of the request's model and return its version.

    Args:
        flags: what is wrong with it, for whoever is to decide.
    """
    card = read_card(adapter)
    tags = {
        "request": recipe.request.id,
        "gate_threshold": str(card.adapter.gate_threshold),
        **_flag_tags(flags),
        **(_certificate_tags(card.certificate) if card.certificate is not None else {}),
    }
    return Registry(tracker).register_candidate(recipe.registered_model, run_id, adapter, card.base, tags)


def _certificate_tags(certificate: Certificate) -> dict[str, str]:
    """The certificate on the model version: what people look for, and all of it as JSON."""
    return {
        "certificate_sentence": certificate.sentence,
        "certificate_holds": str(certificate.holds).lower(),
        "certificate_alpha": str(certificate.alpha),
        "certificate_delta": str(certificate.delta),
        "certificate_bound": str(certificate.calibration.upper_bound),
        "certificate_check_bound": str(certificate.check.upper_bound),
        "certificate": certificate.model_dump_json(),
    }


@contextmanager
def following(tracker: Tracker, run_id: str, path: Path, on_steps: Callable[[int], None]) -> Iterator[None]:
    """Ship a growing spool to MLflow while the context runs, and what is left of it at the end (:func:`pipelines.following.shipping`).

    Args:
        on_steps: called with the number of new steps, whether or not MLflow took them yet.

    Raises:
        TrackingError: at the end MLflow was still away, or refused.
    """
    spool = Spool(tracker, path)

    def ship() -> None:
        on_steps(spool.new_lines())
        spool.ship(run_id)

    with shipping(ship, tracker.patience, seconds=_SHIP_SECONDS, name="spool", kept_in=path):
        yield
