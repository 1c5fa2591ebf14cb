"""The ledger: an append-only, hash-chained record of requests and of what was done for each. Free of torch and of any store.

Entries are folded to the state of each request; what the state does not allow is refused before it is written, and whatever
was altered afterwards is found by whoever reads the chain.
"""

from grun.ledger.chain import GENESIS, Ledger
from grun.ledger.entry import Action, CertificateDetails, Details, LedgerEntry
from grun.ledger.export import parse_export, to_export
from grun.ledger.state import RequestState, Status

__all__ = [
    "GENESIS",
    "Action",
    "CertificateDetails",
    "Details",
    "Ledger",
    "LedgerEntry",
    "RequestState",
    "Status",
    "parse_export",
    "to_export",
]
