"""Score a stack on every request that it answers for, as a Ray task, and keep what the base alone says.

    <output>/reference/<digest>.<ledger>.jsonl    numbers of the base, by set, record and wording; no text
    <folder>/report.json                          the report

The base's rows are scored once for a record and a set, whatever stack is judged; a request costs its own rows and no more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from grun.adapters import AdapterCard, StackedAdapter, digest_stack, load_stack, member_folders, read_card
from grun.config import Recipe
from grun.data.records import Record
from grun.data.splits import Splits
from grun.errors import DataError
from grun.evaluation.evaluate import Rows, Scorer
from grun.evaluation.scores import RowScore, read_rows, write_rows
from grun.evaluation.sets import EvalPrompt, EvalSet, evaluation_sets
from grun.evaluation.stack_report import MemberReport, StackReport, growths
from grun.evaluation.stack_scoring import BaseRows, StackScorer
from grun.evaluation.summary import ScoredSet, summarise
from pipelines.scoring import Counter, make_scorer

__all__ = ["StackSets", "judge_stack", "mean_recall", "utility_ratio"]

_PART: Literal["test"] = "test"
"""Ordinary and utility rows of the half that no threshold was calibrated on."""


@dataclass(frozen=True)
class StackSets:
    """What a stack is judged on."""

    requests: Mapping[str, EvalSet]
    """Questions of each request in wordings that training never saw; none of a request whose text is gone."""
    ordinary: EvalSet
    """Prompts that nobody asked to forget, held out from training."""
    utility: tuple[EvalSet, ...]
    """The sets over which model utility is taken."""

    @classmethod
    def of(cls, splits: Splits, records: Mapping[str, Sequence[Record]]) -> "StackSets":
        """Make the sets.

        Args:
            splits: whose held-out and utility records nobody asks to forget.
            records: of each request of the stack.

        Raises:
            DataError: nothing is held out.
        """
        sets = evaluation_sets(splits, part=_PART)
        ordinary = next((s for s in sets if s.role == "holdout"), None)
        if ordinary is None:
            raise DataError(
                "a stack must be judged on held-out records that nobody asked to forget, got none; hold more out (`data.holdout_frac`, or a "
                "larger holdout set)"
            )
        requests = {
            request_id: EvalSet(f"request {request_id}", "forget_unseen", tuple(EvalPrompt(row, "paraphrase") for row in rows))
            for request_id, rows in records.items()
        }
        return cls(requests, ordinary, tuple(s for s in sets if s.role in ("utility", "retain")))

    @property
    def answered(self) -> tuple[EvalSet, ...]:
        """The sets whose answers count; of ordinary prompts it is the gates."""
        return (*self.requests.values(), *self.utility)


def judge_stack(
    recipe: Recipe, base: str, stack_folder: Path, sets: StackSets, reference: Path, folder: Path, progress: Path | None = None
) -> StackReport:
    """Score a stack and write its report to `<folder>/report.json`. Runs as a task.

    Args:
        reference: file of what the base alone says.

    Raises:
        AdapterError: the stack is damaged or for another base.
    """
    scorer = make_scorer(recipe, base, Counter(progress, sum(len(s.prompts) for s in sets.answered)))
    stack, card = load_stack(stack_folder, scorer.lm)
    base_rows: BaseRows = {(row.set_name, row.digest, row.prompt): row for row in _base_rows(scorer, sets.answered, reference)}
    scored = StackScorer(scorer, stack, base_rows)
    opened = {s.name: scored.opened(s) for s in (*sets.answered, sets.ordinary)}
    before: Rows = {s.name: scored.base(s) for s in sets.answered}
    after: Rows = {s.name: scored.rows(s, opened[s.name]) for s in sets.answered}
    ordinary = opened[sets.ordinary.name]
    new = growths(ordinary.tolist())

    def member_report(index: int, member: StackedAdapter, own: AdapterCard) -> MemberReport:
        asked = sets.requests.get(member.request_id)
        return MemberReport(
            request_id=member.request_id,
            adapter_digest=member.adapter_digest,
            gate_threshold=own.adapter.gate_threshold,
            num_prompts=0 if asked is None else len(asked.prompts),
            rouge_before=None if asked is None else mean_recall(before[asked.name]),
            rouge_after=None if asked is None else mean_recall(after[asked.name]),
            own_open_rate=None if asked is None else float(opened[asked.name][:, index].float().mean()),
            opens=int(ordinary[:, index].sum()),
            growth=new[index],
            certificate=own.certificate,
        )

    cards = [read_card(path) for path in member_folders(stack_folder, card)]
    report = StackReport(
        stack_digest=digest_stack(stack_folder),
        base_digest=card.base_digest,
        composition=card.composition,
        part=_PART,
        members=tuple(
            member_report(index, member, own) for index, (member, own) in enumerate(zip(card.members, cards, strict=True))
        ),
        utility_ratio=utility_ratio(sets.utility, before, after, card.base_digest),
        num_utility=sum(len(s.prompts) for s in sets.utility),
        num_ordinary=len(sets.ordinary.prompts),
        ordinary_digest=sets.ordinary.digest,
    )
    folder.mkdir(parents=True, exist_ok=True)
    report.save(folder / "report.json")
    return report


def mean_recall(rows: Sequence[RowScore]) -> float:
    """Mean ROUGE-L recall."""
    return fmean(row.rouge_l_recall for row in rows if row.rouge_l_recall is not None)


def utility_ratio(utility: Sequence[EvalSet], before: Rows, after: Rows, base_digest: str) -> float | None:
    """Model utility as a share of the base's; None without utility sets."""
    if not utility:
        return None
    scored = [ScoredSet(s.name, s.role, s.digest, after[s.name]) for s in utility]
    report = summarise(scored, base_digest=base_digest, base_rows={s.name: before[s.name] for s in utility}, part=_PART)
    return report["model_utility_ratio"].value


def _base_rows(scorer: Scorer, sets: Sequence[EvalSet], path: Path) -> list[RowScore]:
    """The base's rows of some sets: those that are known, and those that are scored now."""
    known = list(read_rows(path)) if path.is_file() else []
    have = {(row.set_name, row.digest, row.prompt) for row in known}
    new: list[RowScore] = []
    for evaluated in sets:
        missing = [p for p in evaluated.prompts if (evaluated.name, p.record.digest, p.wording) not in have]
        if missing:
            new += scorer.score_prompts(evaluated.name, missing)
    if new:
        known += [replace(row, generated=None) for row in new]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, known)
    return known
