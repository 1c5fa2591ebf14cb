"""Whether what a ledger's entries name by digest is what is there: stacks and adapters in the registry, texts in the vault."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from grun.config import Recipe
from grun.errors import LedgerError
from grun.ledger import Ledger, LedgerEntry
from pipelines.registry import Registry
from pipelines.tracking import Tracker
from pipelines.vault import Vault

__all__ = ["FoundArtifacts", "FoundTexts", "check_artifacts", "check_known", "check_texts"]


@dataclass(frozen=True, slots=True)
class FoundArtifacts:
    """What of the registry was compared with the entries."""

    stacks: int
    """Stacks that are what the entries say."""
    gone: int
    """Versions that are no longer there."""
    adapters: int
    """Adapters in these stacks that are what the entries say."""


@dataclass(frozen=True, slots=True)
class FoundTexts:
    """What of the vault was compared with the entries."""

    same: int
    """Copies that are what was asked to be forgotten."""
    absent: tuple[str, ...]
    """Requests without a copy here, though none was purged."""
    purged: int
    """Requests whose text was purged."""


def check_artifacts(recipe: Recipe, tracker: Tracker, ledger: Ledger) -> FoundArtifacts:
    """Fetch every stack that an entry names and compare it, and the adapters in it, with what entries say.

    Raises:
        LedgerError: another stack or adapter is there; with the entry and the field.
        AdapterError: the files are not those that were registered.
    """
    registry, trained = Registry(tracker), _trained(ledger)
    stacks = gone = adapters = 0
    for (model, version, stack), entry in _named_stacks(recipe, ledger).items():
        if not registry.has_version(model, version):
            gone += 1
            continue
        from grun.adapters import digest_stack, read_stack_card  # loads torch, which a ledger without stacks does without

        with tempfile.TemporaryDirectory() as scratch:
            _version, folder = registry.download(model, version, Path(scratch))
            found, members = digest_stack(folder), read_stack_card(folder).members
        where = f"version {version} of {model}"
        if found != stack:
            raise LedgerError(
                f"what is in the registry must be what the ledger names, got another `stack` (digest {found[:12]}) as {where} than entry "
                f"{entry.sequence} (`{entry.action}` of {entry.request_id!r}) says ({stack[:12]}); one of the two was altered"
            )
        for member in members:
            if member.adapter_digest not in trained.get(member.request_id, ()):
                raise LedgerError(
                    f"a stack must hold adapters that the ledger knows, got an `adapter` of {member.request_id!r} (digest "
                    f"{member.adapter_digest[:12]}) in {where}, which entry {entry.sequence} names, that no entry of that request does; "
                    "find out who stacked it"
                )
        stacks, adapters = stacks + 1, adapters + len(members)
    return FoundArtifacts(stacks, gone, adapters)


def check_texts(recipe: Recipe, ledger: Ledger) -> FoundTexts:
    """Compare every copy in the vault with what its request says.

    Raises:
        DataError: a copy is not what was asked to be forgotten.
        LedgerError: there are copies of requests that the ledger does not know.
    """
    vault = Vault.of(recipe)
    check_known(vault, ledger)
    kept = [state for state in ledger.states.values() if not state.purged]
    there = [state for state in kept if vault.holds(state.id)]
    for state in there:
        vault.read(state)
    absent = tuple(state.id for state in kept if state not in there)
    return FoundTexts(len(there), absent, len(ledger.states) - len(kept))


def check_known(vault: Vault, ledger: Ledger) -> None:
    """Refuse a vault with texts that no entry speaks of: it is another ledger's, or the ledger has lost its entries.

    Raises:
        LedgerError: there are such.
    """
    unknown = [request_id for request_id in vault.requests if request_id not in ledger.states]
    if unknown:
        raise LedgerError(
            f"a ledger must know every request whose text is in its vault, got texts of {', '.join(map(repr, unknown))} in "
            f"{str(vault.folder)!r} and no entry that adds them; check that `tracking.uri` and `ledger.vault` belong together and that nobody "
            "replaced the store. If an `add` did not end, give it again, or delete its folder"
        )


def _named_stacks(recipe: Recipe, ledger: Ledger) -> dict[tuple[str, int, str], LedgerEntry]:
    """Every registered model, version and digest of a stack that entries name, with the first entry that does."""
    named: dict[tuple[str, int, str], LedgerEntry] = {}
    for entry in ledger.entries:
        details = entry.details
        if details.version is not None and details.stack is not None:
            named.setdefault((details.model or recipe.ledger_model, details.version, details.stack), entry)
    return named


def _trained(ledger: Ledger) -> dict[str, set[str]]:
    """The digests of all adapters that were trained, by request."""
    known: dict[str, set[str]] = {}
    for entry in ledger.entries:
        if entry.details.adapter is not None:
            known.setdefault(entry.request_id, set()).add(entry.details.adapter)
    return known
