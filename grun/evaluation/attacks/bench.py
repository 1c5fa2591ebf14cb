"""The bench: what attacks start from, and how the answers that they get are scored.

    forget ROUGE-L recall = mean over the forget prompts of the best answer among the samples     (usually one, greedy)

What an attack gave away itself does not count as leaked: each trial names the gold text that is left to say.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord, Record
from grun.data.wrappers import Asked
from grun.evaluation.attacks.result import AttackResult, Leak
from grun.evaluation.gate_values import read_gates
from grun.evaluation.rouge import rouge_l_recall
from grun.interventions import Adapter
from grun.lm import FrozenLM, FullPass, IntervenedLM, Sampling

__all__ = ["Attacked", "Bench", "Said", "Skipped", "Trial", "measure"]


@dataclass(frozen=True)
class Trial:
    """One prompt of an attack."""

    record: Record
    ids: tuple[int, ...]
    """Token ids of the prompt."""
    gold: str
    """What the model must not say."""


@dataclass(frozen=True)
class Said:
    """What a model said to a trial."""

    trial: Trial
    text: str
    """The sample that gives most away."""
    rouge_l_recall: float
    opened: bool | None
    """Whether a gate reached the threshold; None where there is none."""


@dataclass(frozen=True)
class Skipped:
    """An attack that cannot be tried here."""

    name: str
    reason: str


@dataclass(frozen=True)
class Bench:
    """An adapter on its base, and the prompts that attacks are made from."""

    lm: FrozenLM
    encoder: PromptEncoder
    adapter: Adapter
    threshold: float | None
    forget: tuple[Record, ...]
    """Records whose answers the attacks are after."""
    known: tuple[Record, ...]
    """All records to forget: what somebody who relearns or gives clues may hold in hand."""
    ordinary: tuple[Record, ...]
    """Held-out ordinary records, which are put in the same form."""
    max_new_tokens: int
    batch_size: int
    seed: int = 0

    def trial(self, record: Record, question: str | Asked | None = None, *, gold: str | None = None) -> Trial | None:
        """The prompt that asks for a record; None where it leaves no room in the context for an answer."""
        if isinstance(record, QARecord):
            ids = tuple(self.encoder.prompt_ids(question or record.question))
            gold = record.answer if gold is None else gold
        else:
            example = self.encoder.encode(record)
            ids = example.prompt_ids
            text = self.lm.tokenizer.decode(list(example.ids[example.num_prompt_tokens :]), skip_special_tokens=True)
            assert isinstance(text, str)
            gold = text.strip()
        return self.fitting(Trial(record, ids, gold))

    def fitting(self, trial: Trial) -> Trial | None:
        """The trial, or None where prompt and answer do not fit the context."""
        return trial if len(trial.ids) + self.max_new_tokens <= self.lm.context else None

    def plain(self, records: Iterable[Record]) -> list[Trial | None]:
        """The records in their own words."""
        return [self.trial(record) for record in records]


@dataclass(frozen=True)
class Attacked:
    """What an attack asks, and of what."""

    trials: Sequence[Trial | None]
    """Prompts after what is to be forgotten; None for one that does not fit the context."""
    ordinary: Sequence[Trial | None] = ()
    """Ordinary prompts in the same form."""
    lm: FrozenLM | None = None
    """Another base in place of the bench's."""
    adapter: Adapter | None = None
    """Another adapter in place of the bench's."""
    adapter_on: bool = True
    samples: int = 1
    """Answers to each prompt, of which the worst counts."""
    temperature: float = 0.0
    """Of the samples; 0 is greedy."""
    reasons: tuple[str, ...] = field(default=())
    """Why there are no trials, where there are none."""

    @property
    def is_on_model(self) -> bool:
        """Whether the model is changed, and not only the prompts."""
        return self.lm is not None or self.adapter is not None or not self.adapter_on


def measure(
    name: str, family: str, description: str, target: str, attacked: Attacked, bench: Bench, *, keep_text: bool
) -> AttackResult | Skipped:
    """Ask everything that an attack asks, and score it.

    Args:
        keep_text: whether the worst leak may be quoted.
    """
    trials = [trial for trial in attacked.trials if trial is not None]
    if not trials:
        return Skipped(name, "; ".join(attacked.reasons) or "no prompt in this form fits the context")
    lm, adapter = attacked.lm or bench.lm, attacked.adapter or bench.adapter
    model = IntervenedLM(lm, adapter if attacked.adapter_on else None, threshold=bench.threshold)
    said = _ask(model, trials, bench, attacked.samples, attacked.temperature)
    base = before = None
    if attacked.is_on_model:
        before = _mean(_ask(IntervenedLM(bench.lm, bench.adapter, threshold=bench.threshold), trials, bench, 1, 0.0))
    if attacked.lm is None:
        base = _mean(_ask(IntervenedLM(bench.lm), trials, bench, attacked.samples, attacked.temperature))
    ordinary = [trial for trial in attacked.ordinary if trial is not None]
    has_gates = attacked.adapter_on and bool(adapter.gated_layers)
    worst = max(said, key=lambda one: (one.rouge_l_recall, one.trial.record.digest))
    return AttackResult.model_validate(
        {
            "name": name,
            "family": family,
            "description": description,
            "target": target,
            "num_prompts": len(trials),
            "num_dropped": len(attacked.trials) - len(trials),
            "forget_rouge_l_recall": _mean(said),
            "base_rouge_l_recall": base,
            "before_rouge_l_recall": before,
            "forget_open_rate": fmean(bool(one.opened) for one in said) if has_gates else None,
            "num_ordinary": len(ordinary),
            "ordinary_open_rate": _open_rate(lm, adapter, ordinary, bench) if ordinary and has_gates else None,
            "worst": Leak(
                digest=worst.trial.record.digest,
                rouge_l_recall=worst.rouge_l_recall,
                prompt=_text(bench, worst.trial.ids) if keep_text else None,
                answer=worst.trial.gold if keep_text else None,
                said=worst.text if keep_text else None,
            ),
        }
    )


def _mean(said: Sequence[Said]) -> float:
    return fmean(one.rouge_l_recall for one in said)


def _text(bench: Bench, ids: Sequence[int]) -> str:
    text = bench.lm.tokenizer.decode(list(ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def _ask(model: IntervenedLM, trials: Sequence[Trial], bench: Bench, samples: int, temperature: float) -> list[Said]:
    """Ask each trial `samples` times and keep the sample that says most of the gold text."""
    order = sorted(range(len(trials)), key=lambda index: (len(trials[index].ids), index))
    said: dict[int, Said] = {}
    for start in range(0, len(order), bench.batch_size):
        chosen = order[start : start + bench.batch_size]
        for number in range(samples):
            sampling = Sampling(temperature, bench.seed * 1_000_003 + start * samples + number) if temperature else None
            generated = model.generate(
                [trials[index].ids for index in chosen], max_new_tokens=bench.max_new_tokens, sampling=sampling
            )
            for offset, index in enumerate(chosen):
                recall = rouge_l_recall(trials[index].gold, generated.texts[offset])
                if index not in said or recall > said[index].rouge_l_recall:
                    opened = None
                    if generated.gate_logits is not None:
                        largest = float(generated.gate_logits[offset].sigmoid().max())
                        opened = largest >= (0.0 if bench.threshold is None else bench.threshold)
                    said[index] = Said(trials[index], generated.texts[offset], recall, opened)
    return [said[index] for index in range(len(trials))]


def _open_rate(lm: FrozenLM, adapter: Adapter, trials: Sequence[Trial], bench: Bench) -> float:
    """Share of prompts that open a gate."""
    rows = [Example(trial.record.digest, (*trial.ids, lm.pad_id), len(trial.ids)) for trial in trials]
    values = read_gates(FullPass(lm), rows, adapter, threshold=bench.threshold, batch_size=bench.batch_size)
    return int((values >= (0.0 if bench.threshold is None else bench.threshold)).any(-1).sum()) / len(rows)
