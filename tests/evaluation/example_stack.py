"""A report of a stack of three requests, with numbers that are checked by hand."""

from typing import Any

from grun.certificate import Certificate, OpenCount
from grun.config import SumConfig
from grun.evaluation.stack_report import MemberReport, StackReport

DIGEST = "a" * 64


def certificate(*, num_open: int = 0, alpha: float = 0.03, delta: float = 0.05) -> Certificate:
    """One that holds where few enough of 100 records are open."""
    count = OpenCount(num_records=100, num_open=num_open, upper_bound=0.0295 if num_open == 0 else 0.05, digest=DIGEST)
    return Certificate.make(
        alpha=alpha,
        delta=delta,
        thresholds={5: 0.9},
        calibration=count,
        check=count,
        base_digest=DIGEST,
        tensors_sha256=DIGEST,
    )


def member(request_id: str, **values: Any) -> MemberReport:
    """A request that is forgotten."""
    defaults = {
        "adapter_digest": DIGEST,
        "gate_threshold": 0.9,
        "num_prompts": 10,
        "rouge_before": 0.95,
        "rouge_after": 0.02,
        "own_open_rate": 1.0,
        "opens": 0,
        "growth": 0,
        "certificate": certificate(),
    }
    return MemberReport(request_id=request_id, **{**defaults, **values})


def stack_report(*members: MemberReport, **values: Any) -> StackReport:
    """A report of these members, or of three."""
    chosen = members or (member("r1", opens=2, growth=2), member("r2", opens=3, growth=1), member("r3"))
    defaults: dict[str, Any] = {"utility_ratio": 0.99, "num_utility": 100, "num_ordinary": 300}
    return StackReport(
        stack_digest=DIGEST,
        base_digest=DIGEST,
        composition=SumConfig(),
        part="test",
        members=chosen,
        ordinary_digest=DIGEST,
        **{**defaults, **values},
    )
