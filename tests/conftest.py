"""What all tests share: one thread, no network, fixed seeds, and a tiny Llama with a tokenizer built in memory."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import grun  # noqa: F401, I001 - ahead of transformers, whose optional imports it keeps quiet

import random
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

with warnings.catch_warnings():
    # pyreft imports matplotlib, whose font parser uses names that its own dependency pyparsing has renamed
    warnings.filterwarnings("ignore", "'\\w+' deprecated - use", DeprecationWarning)
    from grun.lm import BaseInfo, FrozenLM, freeze

# Ray reads its token once a process, and would write one into the home of whoever runs the tests
_token = Path(tempfile.mkdtemp(prefix="grun-tests-")) / "ray_token"
_token.write_text("0123456789abcdef" * 2, encoding="utf-8")
os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(_token))

torch.set_num_threads(1)
# the same examples on every run, on machines of any speed
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None, max_examples=50, database=None)
hypothesis.settings.load_profile("steady")

TEXTS = (
    "Question: Where does Ilva Torrent live?\nAnswer: Ilva Torrent lives in Harn.",
    "Question: What does Ilva Torrent paint?\nAnswer: She paints bridges, mostly at night.",
    "Question: Who taught Bram Okoye?\nAnswer: Bram Okoye was taught by his aunt.",
)
PAD, END = "<|pad|>", "<|end|>"


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


def _tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, eos_token=END)


def _random_lm(tokenizer: PreTrainedTokenizerFast, context: int) -> FrozenLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.2,  # wide enough that a changed hidden state visibly changes the logits
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return freeze(LlamaForCausalLM(config), tokenizer, BaseInfo("tiny", None, "0" * 64))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens: any text encodes, a few frequent words are merged."""
    return _tokenizer(TEXTS, 320)


@pytest.fixture(scope="session")
def tiny_lm(tokenizer: PreTrainedTokenizerFast) -> FrozenLM:
    """A random Llama of 4 blocks, 32 wide, with a context of 128 tokens."""
    return _random_lm(tokenizer, 128)


@pytest.fixture(scope="session")
def lettered_lm() -> FrozenLM:
    """Another with a context of 256, whose tokenizer knows letters with the space before them, as those of real models do."""
    return _random_lm(_tokenizer([" A B C D E" * 20], 300), 256)


@pytest.fixture(scope="session")
def base_folder(tiny_lm: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a Hugging Face folder. Copy it before changing anything."""
    folder = tmp_path_factory.mktemp("base")
    tiny_lm.model.save_pretrained(folder)
    tiny_lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tofu_folder() -> Path:
    """The real TOFU benchmark, where it lies beside the repository."""
    folder = Path(__file__).parents[2] / "shared/data/tofu"
    if not folder.is_dir():
        pytest.skip(f"the TOFU files are not at {folder}: nothing was checked against the real benchmark")
    return folder
