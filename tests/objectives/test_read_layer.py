import pytest

from grun.config import NpoConfig, ObjectiveConfig, RetainCeConfig, RetainHiddenConfig, RmuConfig
from grun.errors import ConfigError
from grun.objectives import read_layer


def objective(forget: int | None, retain: int | None) -> ObjectiveConfig:
    return ObjectiveConfig(forget=RmuConfig(read_layer=forget), retain=RetainHiddenConfig(read_layer=retain))


def test_none_where_no_term_reads_hidden_states() -> None:
    config = ObjectiveConfig(forget=NpoConfig(), retain=RetainCeConfig())
    assert read_layer(config, (2, 5), num_layers=8) is None


@pytest.mark.parametrize(
    "config", [ObjectiveConfig(forget=RmuConfig()), ObjectiveConfig(retain=RetainHiddenConfig()), objective(None, 5)]
)
def test_the_last_intervened_block_by_default(config: ObjectiveConfig) -> None:
    assert read_layer(config, (2, 5), num_layers=8) == 5


def test_a_later_block_up_to_the_last_may_be_named() -> None:
    assert read_layer(objective(7, 7), (2, 5), num_layers=8) == 7


@pytest.mark.parametrize("side", ["forget", "retain"])
@pytest.mark.parametrize("layer", [4, 8])
def test_a_block_before_the_last_intervention_or_outside_the_model_is_refused(side: str, layer: int) -> None:
    config = objective(layer, None) if side == "forget" else objective(None, layer)
    with pytest.raises(ConfigError, match=rf"`objective.{side}.read_layer` must lie in 5\.\.7, .* got {layer}"):
        read_layer(config, (2, 5), num_layers=8)


def test_two_terms_that_read_different_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"same block, got `objective.forget.read_layer` 6, `objective.retain.read_layer` 5"):
        read_layer(objective(6, None), (2, 5), num_layers=8)
