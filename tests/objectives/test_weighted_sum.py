from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import tensor

from grun.config import DpoConfig, IdkConfig, InvarianceConfig, NpoConfig, ObjectiveConfig, RetainCeConfig, RetainKlConfig
from grun.objectives import AnswerSource, EnvironmentGradient, Needs, ObjectiveInputs, build_objective

Golden = Callable[..., ObjectiveInputs]

NPO, KL, GATE = 13.0727858881, 0.1463409345, 0.2540847836


def test_loss_is_the_weighted_sum_and_terms_are_raw(golden: Golden) -> None:
    config = ObjectiveConfig(forget=NpoConfig(weight=100, beta=0.1), retain=RetainKlConfig(weight=3), gate_weight=7)
    output = build_objective(config)(golden(), step=1)
    assert output.loss.item() == pytest.approx(1307.2785888 + 3 * KL + 7 * GATE, rel=1e-6)
    assert {key: term.item() for key, term in output.terms.items()} == pytest.approx(
        {
            "forget/npo": NPO,
            "forget/nll_nats": 0.8781668312,
            "retain/kl_nats": KL,
            "retain/nll_nats": 0.8781668312,
            "gate/bce": GATE,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize(("step", "share"), [(1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)])
def test_warmup_fades_in_forget_and_retain_but_not_the_gate(golden: Golden, step: int, share: float) -> None:
    config = ObjectiveConfig(
        forget=NpoConfig(weight=2, beta=0.1), retain=RetainKlConfig(weight=3), gate_weight=5, gate_warmup_steps=4
    )
    output = build_objective(config)(golden(), step)
    assert output.loss.item() == pytest.approx(share * (2 * NPO + 3 * KL) + 5 * GATE, rel=1e-6)
    assert output.terms["forget/npo"].item() == pytest.approx(NPO, rel=1e-6)


def test_steps_count_from_one(golden: Golden) -> None:
    with pytest.raises(AssertionError):
        build_objective(ObjectiveConfig())(golden(), step=0)


def test_refusals_are_not_reported_as_the_answers(golden: Golden) -> None:
    objective = build_objective(ObjectiveConfig(forget=IdkConfig(), retain=RetainCeConfig()))
    assert objective.answers is AnswerSource.REFUSAL
    assert set(objective(golden(), 1).terms) == {"forget/refusal_nll_nats", "retain/nll_nats", "gate/bce"}


def test_each_side_asks_only_for_what_its_own_term_needs() -> None:
    objective = build_objective(ObjectiveConfig(forget=NpoConfig(), retain=RetainKlConfig()))
    assert objective.needs_forget == Needs.REFERENCE_NLL
    assert objective.needs_retain == Needs.LOGITS | Needs.REFERENCE_LOGITS
    assert objective.answers is AnswerSource.OWN


def test_the_penalty_is_weighted_and_faded_in_with_the_edit(golden: Golden) -> None:
    config = ObjectiveConfig(
        forget=NpoConfig(weight=2, beta=0.1),
        retain=RetainKlConfig(weight=3),
        invariance=InvarianceConfig(weight=0.5),
        gate_weight=5,
        gate_warmup_steps=4,
    )
    environments = (EnvironmentGradient(tensor([2.0, 1]), tensor([2.0, 1])), EnvironmentGradient(tensor([3.0]), tensor([3.0])))
    output = build_objective(config)(replace(golden(), environments=environments), step=1)
    assert output.terms["invariance/penalty"].item() == 4 + 1 + 9
    assert output.loss.item() == pytest.approx(0.25 * (2 * NPO + 3 * KL + 0.5 * 14) + 5 * GATE, rel=1e-6)


def test_the_regulariser_reads_the_retain_rows_and_takes_a_second_derivative_of_parameters_only() -> None:
    plain, logits, parameters = (
        build_objective(ObjectiveConfig(retain=RetainCeConfig(), invariance=invariance))
        for invariance in (None, InvarianceConfig(), InvarianceConfig(reading="parameters"))
    )
    assert [objective.needs_retain for objective in (plain, logits, parameters)] == [Needs.NOTHING, Needs.LOGITS, Needs.NOTHING]
    assert [objective.differentiates_twice for objective in (plain, logits, parameters)] == [False, False, True]


def test_what_dpo_prefers_is_a_setting() -> None:
    preferred = [
        build_objective(ObjectiveConfig(forget=forget)).preferred
        for forget in (NpoConfig(), DpoConfig(), DpoConfig(preferred="alternative"))
    ]
    assert preferred == [None, AnswerSource.REFUSAL, AnswerSource.ALTERNATIVE]
