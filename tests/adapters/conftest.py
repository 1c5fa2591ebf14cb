"""A tiny random base and adapters for it."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grun.config import AdapterConfig, LinearGateConfig
from grun.interventions import Adapter, build_adapter
from grun.lm import BaseInfo, FrozenLM, freeze

HIDDEN_SIZE, NUM_LAYERS, VOCAB_SIZE = 32, 4, 64


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{index}": index for index in range(2, VOCAB_SIZE)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture
def lm(tokenizer: PreTrainedTokenizerFast) -> FrozenLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=64,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return freeze(model, tokenizer, BaseInfo("tiny", None, "d" * 64))


@pytest.fixture
def adapter() -> Adapter:
    return build_adapter(
        AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig()), hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS, seed=0
    )
