"""The registry of adapters and stacks: candidates, the champion, and an append-only record of who moved it and why.

MLflow's aliases have no history, no author and no compare-and-set: of two promoters that both read `champion`
and then write it, both succeed and one is lost. So

* a promoter holds a lease (`pipelines.lease`), and promotion reads the champion once more under it;
* tags are written before the alias, so that a crash between the two leaves the old champion;
* every promotion, rollback and refusal is an MLflow run named `promotion`, opened before anything changes:
  one that says FAILED or RUNNING is an attempt that did not end.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from grun.errors import AdapterError, PromotionError
from pipelines import mlflow_flavor
from pipelines.lease import Lease, check_lease, hold_lease
from pipelines.promotion_record import Action, PromotionRecord, Verdict
from pipelines.registering import digest_tags, fetch, find_or_register
from pipelines.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from grun.lm import BaseInfo

__all__ = ["CANDIDATE", "CHAMPION", "Action", "PromotionRecord", "Registry", "Verdict"]

CANDIDATE, CHAMPION = "candidate", "champion"


class Registry:
    """Model versions and aliases in the store of a tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._client = tracker.client
        self._calling = tracker.calling

    def register_candidate(
        self,
        model_name: str,
        run_id: str,
        adapter_folder: Path,
        base: "BaseInfo",
        tags: Mapping[str, str] | None = None,
    ) -> int:
        """Log an adapter or a stack, load it back, register it and point `candidate` at it; return the version.

        The same files of the same run are registered once: a resumed command, and one that waited for a server, get the version
        that was made before. The alias comes last, so what an outage leaves behind is not taken for a candidate.

        Raises:
            AdapterError: the folder is neither, or what comes back is not what was logged; nothing is registered.
            OutageError: MLflow is away; the same call goes on from what was done.
            TrackingError: MLflow refuses; no version stays behind.
        """
        with self._calling("register a candidate"):
            return self._tracker.patience.until(
                partial(find_or_register, self._tracker, model_name, CANDIDATE, run_id, adapter_folder, base, tags or {})
            )

    def names(self) -> list[str]:
        """Names of the registered models that hold a version or an alias, sorted; a ledger of requests is none."""
        with self._calling("list registered models"):
            models = [model for model in self._client.search_registered_models() if model.tags.get("kind") != "ledger"]
        return sorted(model.name for model in models if model.latest_versions)

    def version_of(self, model_name: str, alias: str) -> int | None:
        """The version that an alias points to, or None if the model or the alias does not exist."""
        from mlflow.exceptions import MlflowException

        with self._calling("read an alias"):
            try:
                aliases = self._client.get_registered_model(model_name).aliases
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        return int(aliases[alias]) if alias in aliases else None

    def download(self, model_name: str, alias_or_version: str | int, into: Path) -> tuple[int, Path]:
        """Fetch a version's files, check them against the registry, and return the version and the adapter or stack folder.

        Args:
            into: Folder that receives `v<version>/`; an earlier download of the same version is replaced.

        Raises:
            PromotionError: no such alias or version.
            AdapterError: the files are not the ones that were registered; then nothing is left in `into`.
        """
        version = self._resolve(model_name, alias_or_version)
        expected = self._version(model_name, version).tags
        with self._calling("download a model version"):
            into.mkdir(parents=True, exist_ok=True)
            uri = self._client.get_model_version_download_uri(model_name, str(version))
        with tempfile.TemporaryDirectory(dir=into, prefix=".download-") as scratch:
            folder = fetch(self._tracker, uri, Path(scratch))
            digests = digest_tags(mlflow_flavor.digests_of(mlflow_flavor.load_adapter_folder(folder)))
            if any(expected.get(key) != digest for key, digest in digests.items()):
                raise AdapterError(
                    f"the files of {model_name} version {version} must be the ones that were registered, got {digests}; "
                    "somebody changed the artifacts: register the adapter again and find out who"
                )
            target = into / f"v{version}"
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
        return version, mlflow_flavor.load_adapter_folder(target)

    def version_with(self, model_name: str, adapter_folder: Path) -> int | None:
        """The latest version that holds the files of an adapter or stack folder, or None."""
        tags = digest_tags(mlflow_flavor.digests_of(adapter_folder))
        with self._calling("look for a version"):
            versions = self._client.search_model_versions(f"name = '{model_name}'")
        return max((int(found.version) for found in versions if tags.items() <= found.tags.items()), default=None)

    def has_version(self, model_name: str, version: int) -> bool:
        """Whether a version is (still) in the registry."""
        with self._calling("look for a version"):
            found = self._client.search_model_versions(f"name = '{model_name}' AND version_number = {version}")
        return bool(found)

    def run_of(self, model_name: str, version: int) -> str | None:
        """The run that a version came from: where its own page shows, and where people look for what is known of it.

        Raises:
            PromotionError: no such version.
        """
        return self._version(model_name, version).run_id or None

    def attach(self, model_name: str, version: int, folder: str, texts: Mapping[str, str]) -> None:
        """Store texts with the run that a version came from, and say so in the version's tag `report`.

        Args:
            folder: Artifact folder in that run; the same one is written over.
            texts: By file name; the first is what the tag names.

        Raises:
            PromotionError: no such version.
        """
        run_id = self.run_of(model_name, version)
        if run_id is None:
            return
        for name, text in texts.items():
            self._tracker.log_text(run_id, text, f"{folder}/{name}")
        with self._calling("say where a report is"):
            self._client.set_model_version_tag(model_name, str(version), "report", f"runs:/{run_id}/{folder}/{next(iter(texts))}")

    def promotion_lock(self, model_name: str, owner: str, lease_seconds: float = 900.0) -> AbstractContextManager[Lease]:
        """Hold the right to move a model's champion for the length of a `with` block.

        Args:
            owner: Who asks, as others are to read it.
            lease_seconds: After this time others may take over; it has to be enough for judging and promoting.

        Raises:
            PromotionBusyError: somebody else holds it; names them.
        """
        return hold_lease(self._tracker.store, model_name, owner, lease_seconds)

    def promote(self, lease: Lease, version: int, verdict: Verdict, *, expected_champion: int | None) -> None:
        """Make a version the champion.

        Args:
            expected_champion: The champion that the verdict compared with.

        Raises:
            PromotionError: the lease is lost, the champion is another one by now, or the version is missing or is it already.
        """
        name = lease.model_name
        champion = self._champion_under(lease)
        if champion != expected_champion:
            raise PromotionError(
                f"the champion of {name} must be the one that the candidate was compared with, got version {champion} "
                f"instead of {expected_champion}; judge the candidate again"
            )
        if champion == version:
            raise PromotionError(
                f"a promotion must change the champion, got version {version} of {name}, which is it already; "
                "register another candidate first"
            )
        self._version(name, version)
        tags = {
            "promoted_by": lease.owner,
            "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "previous_champion": "" if champion is None else str(champion),
            "decision": verdict.decision,
        }
        with self._recorded(lease, "promote", champion, version, verdict), self._calling("promote a version"):
            for key, value in tags.items():
                self._client.set_model_version_tag(name, str(version), key, value)
            self._move_champion(lease, version)
        self._clear_candidate(name, version)

    def finish_promotion(self, lease: Lease, version: int) -> None:
        """Do what was left undone when a promoter lost MLflow, or died, after it had moved the champion: its record, the alias.

        Raises:
            PromotionError: the lease is lost, or the version is not the champion.
        """
        if self._champion_under(lease) != version:
            raise PromotionError(
                f"only a promotion that moved the champion can be finished, got version {version} of {lease.model_name}; promote it"
            )
        for record in self.history(lease.model_name):
            if (record.action, record.version_to) == ("promote", version) and record.status != "FINISHED":
                self._tracker.end_run(record.run_id)
        self._clear_candidate(lease.model_name, version)

    def rollback(self, lease: Lease, *, reasons: tuple[str, ...] = ()) -> tuple[int, int]:
        """Give the championship back to the version before, and return both (from, to). A rollback that did not end is ended.

        Raises:
            PromotionError: the lease is lost, there is no champion, or none before it.
        """
        name = lease.model_name
        champion = self._champion_under(lease)
        if champion is None:
            raise PromotionError(f"a rollback needs a champion, got none for {name}; promote a candidate first")
        if (half := self._half_rolled_back(name, champion)) is not None:
            self._forget_previous(name, half.version_from)
            self._tracker.end_run(half.run_id)
            return int(half.version_from or 0), champion
        previous = self._version(name, champion).tags.get("previous_champion")
        if not previous:
            raise PromotionError(
                f"a rollback needs a champion that followed another one, got version {champion} of {name}, which records "
                "none; promote another version instead"
            )
        self._version(name, int(previous))
        verdict = Verdict("rollback", reasons)
        with self._recorded(lease, "rollback", champion, int(previous), verdict), self._calling("roll back"):
            self._move_champion(lease, int(previous))
            self._forget_previous(name, champion)
        return champion, int(previous)

    def decline(self, lease: Lease, version: int, verdict: Verdict) -> None:
        """Record that a version does not become champion, and take the alias `candidate` from it.

        Raises:
            PromotionError: the lease is lost or the version is missing.
        """
        champion = self._champion_under(lease)
        self._version(lease.model_name, version)
        with self._recorded(lease, "decline", champion, version, verdict), self._calling("decline a version"):
            self._client.set_model_version_tag(lease.model_name, str(version), "decision", verdict.decision)
        self._clear_candidate(lease.model_name, version)

    def retire(self, lease: Lease, verdict: Verdict) -> int:
        """Take the alias `champion` away, as nothing is left to be served; return the version that had it. Versions stay.

        Raises:
            PromotionError: the lease is lost, or there is no champion.
        """
        champion = self._champion_under(lease)
        if champion is None:
            raise PromotionError(
                f"only a champion can be retired, got none for {lease.model_name}; there is nothing that is served"
            )
        with self._recorded(lease, "retire", champion, None, verdict), self._calling("take the champion's alias away"):
            self._client.delete_registered_model_alias(lease.model_name, CHAMPION)
        return champion

    def history(self, model_name: str) -> list[PromotionRecord]:
        """The record of a model, oldest first."""
        with self._calling("read the promotion record"):
            runs = list(self._tracker.search(f"tags.kind = 'promotion' AND tags.registered_model = '{model_name}'"))
        return [
            PromotionRecord(
                run_id=run.info.run_id,
                status=run.info.status,
                action=run.data.params["action"],
                version_from=int(run.data.params["from"]) if run.data.params["from"] else None,
                version_to=int(run.data.params["to"]) if run.data.params["to"] else None,
                decision=run.data.params["decision"],
                reasons=tuple(run.data.params["reasons"].splitlines()),
                by=run.data.params["by"],
                at=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
            )
            for run in runs
            if "by" in run.data.params  # absent when a promoter died between opening the run and filling it
        ]

    def _resolve(self, model_name: str, alias_or_version: str | int) -> int:
        if isinstance(alias_or_version, int):
            return alias_or_version
        version = self.version_of(model_name, alias_or_version)
        if version is None:
            raise PromotionError(
                f"an alias must point to a version, got `{alias_or_version}` of {model_name}, which points to none; "
                "run the sweep to get a candidate, or promote one to get a champion"
            )
        return version

    def _version(self, model_name: str, version: int) -> "ModelVersion":
        from mlflow.exceptions import MlflowException

        with self._calling("read a model version"):
            try:
                return self._client.get_model_version(model_name, str(version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        raise PromotionError(f"a version must be in the registry, got {version} of {model_name}; it may have been deleted")

    def _champion_under(self, lease: Lease) -> int | None:
        check_lease(self._tracker.store, lease)
        return self.version_of(lease.model_name, CHAMPION)

    def _move_champion(self, lease: Lease, version: int) -> None:
        """Move the alias, as long as the lease is held; it may have ended while this waited for a server."""

        def move() -> None:
            check_lease(self._tracker.store, lease)
            self._client.set_registered_model_alias(lease.model_name, CHAMPION, str(version))

        self._tracker.patience.until(move)

    def _half_rolled_back(self, model_name: str, champion: int) -> PromotionRecord | None:
        """The record of a rollback that moved the champion, and did not get further."""
        last = next(reversed(self.history(model_name)), None)
        if last is None or (last.action, last.version_to) != ("rollback", champion) or last.status == "FINISHED":
            return None
        return last

    def _forget_previous(self, model_name: str, version: int | None) -> None:
        """Its promotion is undone; left in place, the tag could lead a later rollback in a circle."""
        with self._calling("roll back"):
            self._client.delete_model_version_tag(model_name, str(version), "previous_champion")

    def _clear_candidate(self, model_name: str, version: int) -> None:
        if self.version_of(model_name, CANDIDATE) == version:
            with self._calling("take the candidate's alias away"):
                self._client.delete_registered_model_alias(model_name, CANDIDATE)

    @contextmanager
    def _recorded(
        self, lease: Lease, action: Action, champion: int | None, version: int | None, verdict: Verdict
    ) -> Iterator[None]:
        """Open a promotion run, and close it when the block has done what it says."""
        record = {
            "action": action,
            "registered_model": lease.model_name,
            "from": "" if champion is None else champion,
            "to": "" if version is None else version,
            "decision": verdict.decision,
            "by": lease.owner,
        }
        tags = {"kind": "promotion", "registered_model": lease.model_name}
        with self._tracker.run("promotion", tags=tags) as run_id:
            self._tracker.log_params(run_id, record | {"reasons": "\n".join(verdict.reasons)})
            self._tracker.log_json(
                run_id,
                record | {"from": champion, "to": version, "reasons": list(verdict.reasons), "details": verdict.details},
                "promotion.json",
            )
            for name, text in verdict.texts.items():
                self._tracker.log_text(run_id, text, name)
            yield
