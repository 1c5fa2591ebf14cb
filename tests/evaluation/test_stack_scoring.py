"""Scoring a stack: the base's own row where nothing opens, the stack's where something does, and who it was."""

import torch

from grun.config import AdapterConfig, LinearGateConfig, PromptConfig, SumConfig
from grun.data.prompts import PromptEncoder
from grun.data.records import QARecord
from grun.evaluation.evaluate import Scorer
from grun.evaluation.sets import EvalPrompt, EvalSet
from grun.evaluation.stack_scoring import BaseRows, StackScorer
from grun.interventions import Adapter, AdapterStack, StackMember, build_adapter
from grun.lm import FrozenLM

RECORDS = tuple(QARecord(f"Where does {name} live?", "In Harn.") for name in ("Ilva", "Bram", "Nore", "Teun", "Mira"))
ASKED = EvalSet("asked", "forget_unseen", tuple(EvalPrompt(record, "question") for record in RECORDS))


def adapter(lm: FrozenLM, seed: int) -> Adapter:
    config = AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig())
    return build_adapter(config, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=seed).eval()


def scored(lm: FrozenLM, thresholds: tuple[float | None, ...]) -> StackScorer:
    scorer = Scorer(lm, PromptEncoder(lm.tokenizer, PromptConfig(), context=lm.context), batch_size=3, max_new_tokens=4)
    members = [StackMember(f"r{seed}", adapter(lm, seed), threshold) for seed, threshold in enumerate(thresholds)]
    rows: BaseRows = {(row.set_name, row.digest, row.prompt): row for row in scorer.score_prompts("asked", ASKED.prompts)}
    return StackScorer(scorer, AdapterStack(members, SumConfig()), rows)


def test_a_closed_stack_has_the_rows_of_the_base(tiny_lm: FrozenLM) -> None:
    closed = scored(tiny_lm, (1.0, 1.0))
    opened = closed.opened(ASKED)
    assert not opened.any()
    assert closed.rows(ASKED, opened) == closed.base(ASKED)


def test_a_member_is_open_where_one_of_its_own_gates_reaches_its_own_threshold(tiny_lm: FrozenLM) -> None:
    probe = scored(tiny_lm, (1.0, 1.0))
    values = probe.scorer.closed_gate_values(ASKED.prompts, probe.stack)
    columns = {
        request_id: [place for place, (owner, _layer) in enumerate(probe.stack.columns) if owner == request_id]
        for request_id in ("r0", "r1")
    }
    largest = {request_id: values[:, places].amax(1) for request_id, places in columns.items()}
    bounds = (float(largest["r0"].median()), float(largest["r1"].max()) + 1e-4)
    opened = scored(tiny_lm, bounds).opened(ASKED)
    assert torch.equal(opened[:, 0], largest["r0"] >= bounds[0])
    assert 0 < int(opened[:, 0].sum()) < len(RECORDS)
    assert not opened[:, 1].any()


def test_soft_gates_are_always_open(tiny_lm: FrozenLM) -> None:
    assert scored(tiny_lm, (1.0, None)).opened(ASKED).tolist() == [[False, True]] * len(RECORDS)


def test_only_the_prompts_that_open_something_are_run_and_their_rows_are_the_stacks(tiny_lm: FrozenLM) -> None:
    stack = scored(tiny_lm, (0.0, 1.0))
    opened = torch.zeros(len(RECORDS), 2, dtype=torch.bool)
    opened[[1, 4], 0] = True
    rows, base = stack.rows(ASKED, opened), stack.base(ASKED)
    whole = stack.scorer.score_prompts("asked", ASKED.prompts, adapter=stack.stack)
    for place, row in enumerate(rows):
        if place in (1, 4):
            assert abs(row.answer_nll_nats - whole[place].answer_nll_nats) < 1e-4
            assert abs(row.answer_nll_nats - base[place].answer_nll_nats) > 1e-3
        else:
            assert row == base[place]
        assert row.gate_values == ()
