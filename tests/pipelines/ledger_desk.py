"""A ledger in a folder of its own: its commands, adapters made by hand, and what is served."""

import shutil
from pathlib import Path

from grun.adapters import AdapterCard, digest_adapter, read_stack_card, save_adapter
from grun.config import Recipe
from grun.interventions import build_adapter
from grun.ledger import Details, Ledger
from grun.lm import FrozenLM
from pipelines import request
from pipelines.ledger_store import LedgerStore
from pipelines.registry import CHAMPION, Registry
from pipelines.sequencing.commands import open_work
from pipelines.sequencing.training import kept_adapter

__all__ = ["Desk"]


class Desk:
    """A ledger in a folder of its own, and its commands."""

    def __init__(self, recipe: Recipe, file: Path, lm: FrozenLM, data: Path) -> None:
        self.recipe, self.file, self.lm, self.data = recipe, file, lm, data

    def run(self, *arguments: str) -> int:
        return request.main([*arguments, "--recipe", str(self.file)])

    def add(self, request_id: str, first: int, last: int) -> None:
        lines = (self.data / "forget.jsonl").read_text(encoding="utf-8").splitlines()[first:last]
        path = self.file.with_name(f"{request_id}.jsonl")
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        assert self.run("add", "--request.id", request_id, "--request.reason", "asked", "--forget", str(path)) == 0

    def train(self, request_id: str, *, threshold: float = 1.0) -> None:
        """Record an adapter as if it had been trained; at threshold 0 it opens for everything, at 1 for nothing."""
        with open_work(self.recipe) as work:
            adapter = build_adapter(
                work.recipe.adapter, hidden_size=self.lm.hidden_size, num_layers=self.lm.num_layers, seed=len(work.ledger.entries)
            )
            card = AdapterCard(
                adapter=work.recipe.adapter.model_copy(update={"gate_threshold": threshold}),
                hidden_size=self.lm.hidden_size,
                num_layers=self.lm.num_layers,
                base_name=self.lm.info.name,
                base_digest=self.lm.info.digest,
                request_ids=(request_id,),
                prompt=work.recipe.prompt,
            )
            made = save_adapter(adapter, card, self.file.parent / "made")
            digest = digest_adapter(made)
            shutil.copytree(made, kept_adapter(work, request_id, digest))
            work.record("train", request_id)
            work.record("trained", request_id, details=Details(adapter=digest))

    @property
    def model(self) -> str:
        return self.recipe.ledger_model

    @property
    def folder(self) -> Path:
        return self.recipe.output / "ledgers" / self.recipe.ledger.name

    def ledger(self) -> Ledger:
        return LedgerStore.open(self.recipe).read()

    @property
    def registry(self) -> Registry:
        return Registry(LedgerStore.open(self.recipe).tracker)

    def champion(self) -> tuple[int, tuple[str, ...]] | None:
        """Version and members of what is served, as it comes out of the registry."""
        if self.registry.version_of(self.model, CHAMPION) is None:
            return None
        version, folder = self.registry.download(self.model, CHAMPION, self.file.parent / "downloaded")
        return version, read_stack_card(folder).request_ids

    def actions(self) -> list[tuple[str, str]]:
        return [(entry.action, entry.request_id) for entry in self.ledger().entries]
