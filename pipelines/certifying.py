"""The utility certificate of an adapter, made after training: gates of held-out records are read, the threshold is raised where
`calibration.mode` asks for it, and the adapter's folder is written with both.
"""

from pathlib import Path

from grun.adapters import copy_adapter, load_adapter, read_card
from grun.certificate import Certificate
from grun.config import NoGateConfig, Recipe
from grun.errors import DataError
from grun.evaluation.calibration import certify, holdout_halves, records_needed
from grun.ledger import CertificateDetails
from pipelines.calibrating import read_ordinary
from pipelines.console import note
from pipelines.prepared import Prepared, read_prepared
from pipelines.scoring import make_scorer
from pipelines.task_progress import tell_progress
from pipelines.tasks import HelperTask, run_tasks

__all__ = ["certificate_row", "certified", "certify_adapter", "check_calibration", "no_certificate", "promise"]


def no_certificate(recipe: Recipe, prepared: Prepared, threshold: float | None) -> str | None:
    """Why an adapter of this gate threshold gets no certificate; None where it gets one, be it that it holds or not."""
    config = recipe.calibration
    if config.mode == "off":
        return "`calibration.mode` is off"
    if isinstance(recipe.adapter.gate, NoGateConfig):
        return "without gates (`adapter.gate.kind` none) every prompt is touched"
    if threshold is None:
        return "soft gates (`adapter.gate_threshold` unset) touch every prompt a little"
    have, needed = _halves(prepared), records_needed(config.alpha, config.delta)
    if min(have) < needed:
        return (
            f"to bound a rate by {config.alpha:g} at confidence {1 - config.delta:g} takes at least {needed} records in each half of the "
            f"holdout set, which has {have[0]} and {have[1]}"
        )
    return None


def _halves(prepared: Prepared) -> tuple[int, int]:
    """Records to calibrate on and to check on."""
    calibration, check = ({prompt.record.digest for prompt in half.prompts} for half in holdout_halves(prepared.splits))
    return len(calibration), len(check)


def check_calibration(recipe: Recipe, prepared: Prepared, threshold: float | None) -> None:
    """Say before any training that there will be no certificate, or refuse to start where promotion would ask for one in vain.

    Args:
        threshold: the gate threshold that is asked for; None for soft gates.

    Raises:
        DataError: the holdout set is too small for what is to be promised.
    """
    reason = no_certificate(recipe, prepared, threshold)
    if reason is None:
        return
    config = recipe.calibration
    has_gates = not isinstance(recipe.adapter.gate, NoGateConfig)
    too_few = config.mode != "off" and has_gates and threshold is not None
    if too_few and recipe.promotion.require_certificate:
        raise DataError(
            f"{reason}; hold more records out (`data.holdout_frac`, or a larger holdout set), raise `calibration.alpha`, or do without "
            "a certificate: `promotion.require_certificate: false`"
        )
    note(f"there will be no certificate: {reason}")


def certified(
    recipe: Recipe, prepared: Prepared, adapter: Path, target: Path, *, threshold: float | None, cache: Path | None = None
) -> Path:
    """Write an adapter with its gate threshold and certificate, as one task on the cluster; without one where there is a reason.

    Args:
        target: may be the adapter's own folder.
        threshold: the gate threshold that is asked for, which `calibration.mode: raise` may raise.
        cache: a prefix cache that may hold the held-out records.

    Returns:
        `target`.
    """
    if no_certificate(recipe, prepared, threshold) is not None:
        return copy_adapter(adapter, target, gate_threshold=threshold)
    arguments = {
        "recipe": recipe,
        "prepared": prepared.folder,
        "base": prepared.base,
        "adapter_folder": adapter,
        "target": target,
        "threshold": threshold,
        "cache": cache,
    }
    run_tasks(recipe, [HelperTask("certifying the adapter", certify_adapter, arguments)], shared=recipe.output.absolute())
    certificate = read_card(target).certificate
    if certificate is not None and not certificate.holds:
        note(certificate.sentence)
    return target


def certify_adapter(
    recipe: Recipe,
    prepared: Path,
    base: str,
    adapter_folder: Path,
    target: Path,
    threshold: float,
    cache: Path | None = None,
    progress: Path | None = None,
) -> None:
    """Read the gates of both halves of the holdout set, and write the adapter with threshold and certificate. Runs as a task.

    Raises:
        AdapterError: the adapter is damaged or for another base.
    """
    config = recipe.calibration
    scorer = make_scorer(recipe, base, None, cache)
    adapter, card = load_adapter(adapter_folder, scorer.lm)
    _request, splits = read_prepared(prepared)
    gates = []
    for number, half in enumerate(holdout_halves(splits), start=1):
        gates.append(read_ordinary(scorer, adapter, half))
        tell_progress(progress, number, 2)
    calibration, check = gates
    if config.mode == "raise":
        threshold = calibration.raised(threshold, alpha=config.alpha, delta=config.delta)
    certificate = certify(
        calibration,
        check,
        alpha=config.alpha,
        delta=config.delta,
        threshold=threshold,
        layers=adapter.layers,
        base_digest=scorer.lm.info.digest,
        tensors_sha256=card.tensors_sha256,
    )
    copy_adapter(adapter_folder, target, gate_threshold=threshold, certificate=certificate)


def promise(certificate: Certificate | CertificateDetails | None) -> str:
    """What is promised about ordinary prompts, in a sentence."""
    return "none: nothing is promised about ordinary prompts" if certificate is None else certificate.sentence


def certificate_row(certificate: Certificate | CertificateDetails | None) -> dict[str, str]:
    """The same as a line of a summary."""
    return {"certificate": promise(certificate)}
