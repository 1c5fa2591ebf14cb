"""Variants of training rows: known beforehand, drawn by seed and step, the same on any number of workers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grun.config import AugmentationConfig, PromptConfig
from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord, TextRecord
from grun.lm import FrozenLM, FullPass
from grun.training import Checkpoints, Progress, StopTraining, Task, TorchEngine, fit, load_checkpoint
from grun.training.augmentation import Augmentation

MakeTask = Callable[..., Task]
AUGMENTED: Mapping[str, Any] = {"augmentation": {"variants": 3}}


def prompts(examples: tuple[Example, ...]) -> list[tuple[int, ...]]:
    return [example.prompt_ids for example in examples]


def test_workers_share_out_the_same_forms(make_task: MakeTask) -> None:
    sampler = make_task(**AUGMENTED).sampler
    for step in range(6):
        whole = sampler.batch(step)
        parts = [sampler.batch(step, rank=rank, world_size=2) for rank in range(2)]
        assert [row for pair in zip(*(part.forget for part in parts), strict=True) for row in pair] == list(whole.forget)
        assert [row for pair in zip(*(part.retain for part in parts), strict=True) for row in pair] == list(whole.retain)


def test_forms_of_a_step_depend_on_seed_and_step_alone(make_task: MakeTask) -> None:
    first, again, other = (make_task(seed=seed, **AUGMENTED).sampler for seed in (0, 0, 1))
    later = first.batch(5)
    assert later == again.batch(5), "asked out of order, as a resumed run does"
    assert prompts(later.forget) != prompts(other.batch(5).forget)
    plain = {forms[0].prompt_ids for forms in first.forget}
    seen = {example.prompt_ids for step in range(30) for example in first.batch(step).forget}
    assert plain < seen, "both plain and wrapped questions are visited"
    assert seen == {form.prompt_ids for forms in first.forget for form in forms}, "in the long run, every form"


def test_variants_change_the_trajectory_and_a_recipe_without_them_does_not_wrap(make_task: MakeTask) -> None:
    plain, augmented = make_task(), make_task(**AUGMENTED)
    assert all(len(forms) == 1 for forms in (*plain.sampler.forget, *plain.sampler.retain))
    fewer = make_task(augmentation={"variants": 3, "families": ["lead_in"]})
    assert len({task.trajectory for task in (plain, augmented, fewer)}) == 3


def test_forget_and_retain_rows_are_wrapped_alike(make_task: MakeTask) -> None:
    sampler = make_task(augmentation={"variants": 2, "families": ["header"]}).sampler
    assert {len(forms) for forms in sampler.forget} == {len(forms) for forms in sampler.retain} == {3}


def test_a_resumed_run_follows_the_same_forms(make_task: MakeTask, tiny_lm: FrozenLM, tmp_path: Path) -> None:
    def run(task: Task, start: int = 0, stop: int | None = None) -> None:
        def halt(progress: Progress) -> None:
            if progress.step == stop:
                checkpoints.save(progress.adapter, progress.optimizer, step=progress.step, trajectory=task.trajectory)
                raise StopTraining

        engine = TorchEngine(FullPass(tiny_lm))
        fit(engine, task.adapter, task.objective, task.sampler, task.optimizer, start=start, callbacks=[halt])

    checkpoints = Checkpoints(tmp_path)
    whole, begun, resumed = (make_task(**AUGMENTED) for _ in range(3))
    run(whole)
    run(begun, stop=3)
    run(
        resumed,
        start=load_checkpoint(tmp_path / "step00000003", resumed.adapter, resumed.optimizer, trajectory=resumed.trajectory),
    )
    for mine, theirs in zip(whole.adapter.parameters(), resumed.adapter.parameters(), strict=True):
        assert mine.equal(theirs)


def test_a_variant_that_fits_no_context_is_left_out(tiny_lm: FrozenLM) -> None:
    record = QARecord("Where does Ilva live?", "In Harn.", paraphrased_question="In which town is Ilva at home?")
    encoder = PromptEncoder(tiny_lm.tokenizer, PromptConfig(), context=tiny_lm.context)
    tight = PromptEncoder(
        tiny_lm.tokenizer, PromptConfig(max_length=len(encoder.encode(record).ids) + 1), context=tiny_lm.context
    )
    augmentation = Augmentation(AugmentationConfig(variants=5, families=("lead_in",)), seed=0, retain=())
    assert len(augmentation.forms(encoder, record, None)[0]) == 6
    assert augmentation.forms(tight, record, None) == ((tight.encode(record),),)


def test_paraphrases_are_never_trained_on_and_texts_stay_as_they_are(tiny_lm: FrozenLM) -> None:
    encoder = PromptEncoder(tiny_lm.tokenizer, PromptConfig(), context=tiny_lm.context)
    augmentation = Augmentation(AugmentationConfig(variants=8), seed=0, retain=())
    record = QARecord("Where is Ilva?", "Harn.", paraphrased_question="In which town?")
    texts = [tiny_lm.tokenizer.decode(list(form.ids)) for form in augmentation.forms(encoder, record, None)[0]]
    assert not [text for text in texts if "which town" in text]
    text = TextRecord("The river rose in the night, and by morning the mill stood in water.")
    assert augmentation.forms(encoder, text, None) == ((encoder.encode(text),),)


def test_two_answers_of_a_record_come_in_the_same_forms(tiny_lm: FrozenLM) -> None:
    record = QARecord("Where does Ilva live?", "In Harn.", paraphrased_question="In which town is Ilva at home?")
    long = "In a house by the river that nobody remembers any more."
    encoder = PromptEncoder(tiny_lm.tokenizer, PromptConfig(), context=tiny_lm.context)
    # room for every form with its own answer, and not for every form with the long one
    room = len(encoder.encode(record, answer=long).ids)
    tight = PromptEncoder(tiny_lm.tokenizer, PromptConfig(max_length=room), context=tiny_lm.context)
    alone, (mine, theirs) = (
        Augmentation(AugmentationConfig(variants=8), seed=0, retain=()).forms(tight, record, *answers)
        for answers in ((None,), (None, long))
    )
    assert len(theirs) < len(alone[0])
    assert [form.prompt_ids for form in mine] == [form.prompt_ids for form in theirs]
    assert {form.ids[form.num_prompt_tokens :] for form in theirs} == {
        tight.encode(record, answer=long).ids[-theirs[0].num_answer_tokens :]
    }
