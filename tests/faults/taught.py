"""What a sweep of the tests stands on: a base that knows something, as damage is measured against it, and nothing that takes long."""

from collections.abc import Mapping
from typing import Any

__all__ = ["TAUGHT"]

TAUGHT: Mapping[str, Any] = {
    "name": "swept",
    "data": {"kind": "testbed", "num_people": 12, "num_forget": 2},
    "model": {
        "retain_twin": False,
        "taught": {"hidden_size": 64, "num_layers": 4, "vocab_size": 1024, "epochs": 14, "learning_rate": 0.005},
    },
    "evaluation": {"max_new_tokens": 6},
    "calibration": {"mode": "off"},
    "promotion": {"require_certificate": False},
}
