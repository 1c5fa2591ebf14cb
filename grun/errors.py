"""Everything that can go wrong in a way the user can mend.

    GrunError
    ├── ConfigError      a recipe, an option or a space breaks a rule
    ├── DataError        a record, a split or a prompt is not what it should be
    ├── ModelError       a base model is missing, damaged or not of a supported shape
    ├── CacheError       a prefix cache is unfinished, damaged, too large or was made for something else
    ├── DiskError        a disk is full, over quota, read-only or failing
    ├── StorageError     shared storage cannot be reached or refuses, or what it holds is damaged
    ├── AdapterError     an adapter folder is damaged or does not fit the base
    ├── TrainingError    training cannot go on (non-finite loss, a tensor that nothing trains)
    ├── ClusterError     the cluster cannot run what was asked for
    ├── TrackingError    MLflow cannot be reached or refuses
    │   └── OutageError     it is away or fails, and may come back
    ├── PromotionError   the registry is not in a state that allows the step
    │   └── PromotionBusyError   somebody else is promoting this very model
    └── LedgerError      the ledger does not allow the step, or is not as it was written
        └── LedgerBusyError      somebody else works on this very ledger

Every message gives the rule, the offending value and the remedy. A command that meets one prints it
without a traceback and ends with exit status 2; any other exception is a defect of ours.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "AdapterError",
    "CacheError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "DiskError",
    "GrunError",
    "LedgerBusyError",
    "LedgerError",
    "ModelError",
    "OutageError",
    "PromotionBusyError",
    "PromotionError",
    "StorageError",
    "TrackingError",
    "TrainingError",
    "near_miss",
]


class GrunError(Exception):
    """Root of all errors that the user can mend."""


class ConfigError(GrunError):
    """A recipe, a command-line option or a search space breaks a rule."""


class DataError(GrunError):
    """A record, a split or a prompt is not what it should be."""


class ModelError(GrunError):
    """A base model is missing, damaged or not of a supported shape."""


class CacheError(GrunError):
    """A prefix cache is unfinished, damaged, too large or was made for something else."""


class DiskError(GrunError):
    """A disk is full, over quota, read-only or failing; no restart mends that."""


class StorageError(GrunError):
    """Shared storage cannot be reached or refuses, or an object there is not what was written."""


class AdapterError(GrunError):
    """An adapter folder is damaged or does not fit the base model."""


class TrainingError(GrunError):
    """Training cannot go on."""


class ClusterError(GrunError):
    """The cluster cannot run what was asked for."""


class TrackingError(GrunError):
    """MLflow cannot be reached or refuses a request."""


class OutageError(TrackingError):
    """MLflow is away or fails: the same request may well succeed later."""


class PromotionError(GrunError):
    """The model registry is not in a state that allows the step."""


class PromotionBusyError(PromotionError):
    """Somebody else holds the promotion lock of this registered model."""


class LedgerError(GrunError):
    """The ledger of requests does not allow the step, or is not as it was written."""


class LedgerBusyError(LedgerError):
    """Somebody else holds the lock of this ledger."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean `x`?)" for the closest known word, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{close[0]}`?)" if close else ""
