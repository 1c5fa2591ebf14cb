"""Every supported shape of decoder, as a tiny random model.

Sliding windows are shorter than the rows and logits are soft-capped where the family does so, so that the masks and
caches behind those features take part.
"""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from grun.lm import BaseInfo, FrozenLM, freeze

VOCAB, WIDTH, DEPTH = 64, 32, 4
WINDOW, SOFT_CAP = 4, 2.0

TOKENS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
SHAPE = {
    **TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
WINDOWED = {**GROUPED, "sliding_window": WINDOW}
# Gemma scales its embeddings by the square root of the width: with a tied head they would drown everything else
GEMMA = {**WINDOWED, "head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": False}
ALTERNATING = ["sliding_attention", "full_attention"] * (DEPTH // 2)

CONFIGS = {
    "llama": GROUPED,
    "mistral": WINDOWED,
    "qwen2": {**WINDOWED, "use_sliding_window": True, "max_window_layers": 0},
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma2": {**GEMMA, "layer_types": ALTERNATING, "final_logit_softcapping": SOFT_CAP, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**GEMMA, "layer_types": ALTERNATING},
    "phi3": WINDOWED,
    "gpt_neox": SHAPE,
    "gpt2": {**TOKENS, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 64},
}


def shaped_lm(name: str) -> FrozenLM:
    """A model of four blocks of one family, deterministic."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **CONFIGS[name])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # one word a token, so that equal texts mean equal tokens
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    return freeze(model, tokenizer, BaseInfo(name, None, "0" * 64))
