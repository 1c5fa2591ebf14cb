"""Upper parts of every supported shape: loaded alone, they are the same model above the cut, and hold nothing of what is below."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import LlamaForCausalLM

from grun.config import AdapterConfig, LinearGateConfig
from grun.interventions import build_adapter
from grun.lm import CachedPass, FrozenLM, load_frozen_lm
from grun.lm.blocks import upper_class
from tests.lm.shapes import CONFIGS, DEPTH, WIDTH, shaped_lm
from tests.lm.test_passes import EXAMPLES, build_cache


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    return shaped_lm(request.param)


@pytest.mark.parametrize("cut", [0, 2, DEPTH - 1])
def test_an_upper_part_that_is_loaded_alone(lm: FrozenLM, cut: int, tmp_path: Path) -> None:
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    upper = load_frozen_lm(str(tmp_path), cut=cut)
    assert (upper.cut, upper.num_layers) == (cut, DEPTH)
    shared = {id(parameter) for block in lm.blocks[: cut + 1] for parameter in block.parameters()}
    if not lm.model.config.tie_word_embeddings:
        shared |= {id(parameter) for parameter in lm.model.get_input_embeddings().parameters()}
    expected = {name: p for name, p in lm.model.named_parameters() if id(p) not in shared}
    found = dict(upper.model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    adapter = build_adapter(
        AdapterConfig(layers=(cut,), rank=4, gate=LinearGateConfig()), hidden_size=WIDTH, num_layers=DEPTH, seed=0
    )
    cache = build_cache(lm, tmp_path / "cache", cuts=(cut,))
    alone, view = (CachedPass(base, cache).answers(EXAMPLES, adapter) for base in (upper, lm.above(cut)))
    assert torch.equal(alone.nll, view.nll)


def test_what_is_left_out_is_never_allocated(tiny_lm: FrozenLM) -> None:
    config = tiny_lm.model.config
    model = upper_class(LlamaForCausalLM, config, 1)(config)
    names = {name for name, _parameter in model.named_parameters()}
    assert {name.split(".")[2] for name in names if name.startswith("model.layers")} == {"2", "3"}
    allocated: list[int] = []
    empty = torch.empty

    def watched(*args: object, **kwargs: object) -> torch.Tensor:
        made: torch.Tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        allocated.append(0 if made.is_meta else made.numel())
        return made

    kind = upper_class(LlamaForCausalLM, config, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", watched)
        kind(config)
    assert sum(allocated) == sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


def test_a_whole_model_can_be_built_afterwards(tiny_lm: FrozenLM) -> None:
    config = cast(Any, tiny_lm.model.config)
    upper_class(LlamaForCausalLM, config, 1)(config)
    assert LlamaForCausalLM(config).num_parameters() == tiny_lm.model.num_parameters()
