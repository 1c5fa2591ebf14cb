"""Verification of the certificate that lies with an adapter: it must be about this adapter, and say what its counts amount to.

Everything is computed again from the counts; what cannot be (the digests of the prompts) is held by the digest over the whole.
Whoever may write the file may forge all of it: against that, the registry keeps the digest of the file itself.
"""

from collections.abc import Collection

from grun.certificate import Certificate, OpenCount
from grun.errors import AdapterError
from grun.evaluation.gate_separation import clopper_pearson_upper

__all__ = ["check_certificate"]

_BOUND_WITHIN = 1e-12


def check_certificate(
    certificate: Certificate,
    *,
    layers: Collection[int],
    gate_threshold: float | None,
    base_digest: str,
    tensors_sha256: str,
) -> None:
    """Refuse a certificate of something else, and one that does not follow from its own counts.

    Args:
        layers, gate_threshold, base_digest, tensors_sha256: of the adapter that it lies with.

    Raises:
        AdapterError: with what differs.
    """
    belongs = {
        "tensors": (certificate.tensors_sha256, tensors_sha256),
        "base": (certificate.base_digest, base_digest),
        "layers": (sorted(certificate.thresholds), sorted(layers)),
    }
    for what, (got, expected) in belongs.items():
        if got != expected:
            raise _refused(
                f"be about the adapter it lies with, got {what} {_short(got)} where the adapter has {_short(expected)}"
            )
    if not certificate.covers(gate_threshold):
        raise _refused(
            f"speak for the adapter's gate threshold or a lower one, got {max(certificate.thresholds.values())!r} where "
            f"the adapter has {gate_threshold!r}"
        )
    if certificate.calibration.digest == certificate.check.digest:
        raise _refused("rest on two sets of prompts, got one digest for both")
    for name, count in (("calibration", certificate.calibration), ("check", certificate.check)):
        _check_bound(name, count, certificate.delta)
    again = Certificate.make(**{name: getattr(certificate, name) for name in _DECIDING})
    for name in ("holds", "sentence", "digest"):
        got, expected = getattr(certificate, name), getattr(again, name)
        if got != expected:
            raise _refused(f"say what follows from its counts, got `{name}` {_short(got)} instead of {_short(expected)}")


_DECIDING = ("alpha", "delta", "thresholds", "calibration", "check", "base_digest", "tensors_sha256")
"""What :meth:`Certificate.make` takes."""


def _check_bound(name: str, count: OpenCount, delta: float) -> None:
    if count.num_open > count.num_records:
        raise _refused(f"count at most all records as open, got {count.num_open} of {count.num_records} in `{name}`")
    bound = clopper_pearson_upper(count.num_open, count.num_records, confidence=1 - delta)
    if abs(bound - count.upper_bound) > _BOUND_WITHIN:
        raise _refused(
            f"bound its own counts, got {count.upper_bound!r} where {count.num_open} of {count.num_records} at confidence "
            f"{1 - delta:.6g} give {bound!r} in `{name}`"
        )


def _short(value: object) -> str:
    """A value as it is shown; of a digest, the beginning."""
    is_digest = isinstance(value, str) and len(value) == 64 and " " not in value
    return str(value)[:12] if is_digest else repr(value)


def _refused(rule: str) -> AdapterError:
    return AdapterError(
        f"a certificate must {rule}; fetch the adapter again, or run `train` or `sweep` to have it certified anew"
    )
