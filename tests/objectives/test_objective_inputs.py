import pytest
import torch

from grun.objectives import AnswerTokens, ObjectiveInputs, Totals


def test_tokens_are_summed_into_their_own_sequences_in_any_order() -> None:
    tokens = AnswerTokens(torch.tensor([1.0, 10, 2, 100]), torch.tensor([2, 0, 2, 3]), 4, nll_ref=torch.ones(4))
    assert tokens.sequence_nll().tolist() == [10, 0, 3, 100]
    assert tokens.sequence_nll_ref().tolist() == [1, 0, 2, 1]


def test_a_half_precision_sum_does_not_lose_tokens() -> None:
    tokens = AnswerTokens(torch.ones(1000, dtype=torch.bfloat16), torch.zeros(1000, dtype=torch.long), 1)
    assert tokens.sequence_nll().tolist() == [1000]


def test_fields_that_would_broadcast_are_refused() -> None:
    with pytest.raises(AssertionError, match="nll_ref"):
        AnswerTokens(torch.ones(3), torch.zeros(3, dtype=torch.long), 1, nll_ref=torch.ones(1))


def test_gate_logits_of_another_batch_are_refused() -> None:
    tokens = AnswerTokens(torch.ones(3), torch.tensor([0, 1, 1]), 2)
    with pytest.raises(AssertionError, match="3 rows of gate logits, 2 sequences"):
        ObjectiveInputs(tokens, tokens, torch.zeros(3, 1), torch.zeros(3, 1), Totals(2, 3, 2, 3))


def test_an_empty_global_batch_is_refused() -> None:
    with pytest.raises(AssertionError, match="forget_tokens=0"):
        Totals(forget_rows=1, forget_tokens=0, retain_rows=1, retain_tokens=1)


def test_lengths_count_the_tokens_of_each_sequence() -> None:
    tokens = AnswerTokens(torch.full((4,), 7.0), torch.tensor([2, 0, 2, 3]), 4)
    assert tokens.sequence_lengths().tolist() == [1, 0, 2, 1]


def test_preferred_answers_of_other_rows_are_refused() -> None:
    tokens = AnswerTokens(torch.ones(3), torch.tensor([0, 1, 1]), 2)
    gates, totals = torch.zeros(2, 1), Totals(2, 3, 2, 3)
    with pytest.raises(AssertionError, match="1 preferred answers, 2 forget rows"):
        ObjectiveInputs(tokens, tokens, gates, gates, totals, preferred=AnswerTokens(torch.ones(2), torch.tensor([0, 0]), 1))


def test_gates_on_one_side_only_are_refused() -> None:
    tokens = AnswerTokens(torch.ones(3), torch.tensor([0, 1, 1]), 2)
    with pytest.raises(AssertionError, match="gates on one side only"):
        ObjectiveInputs(tokens, tokens, torch.zeros(2, 1), None, Totals(2, 3, 2, 3))
