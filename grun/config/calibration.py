"""How the gate threshold is calibrated on held-out ordinary prompts."""

from typing import Literal

from pydantic import Field

from grun.config.base import Config

__all__ = ["CalibrationConfig"]


class CalibrationConfig(Config):
    """The promise about ordinary prompts: at most a share `alpha` of them opens a gate, at confidence 1 - `delta`."""

    alpha: float = Field(default=0.03, gt=0, lt=1)
    """Largest share of ordinary prompts that may open a gate; a holdout set of n records in each half allows about 3 / n and no less."""
    delta: float = Field(default=0.05, gt=0, lt=1)
    """Probability of being wrong that is accepted: the promise is made at confidence 1 - `delta`."""
    mode: Literal["raise", "check", "off"] = "raise"
    """`raise`: a threshold below the smallest one that keeps the promise is raised to it; `check`: thresholds stay as asked, and
    the certificate says whether they keep it; `off`: no certificate."""
