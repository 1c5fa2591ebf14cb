"""Teach a small Llama-shaped model a set of records, from nothing: the base of the embedded default.

Its tokenizer is a byte-level BPE trained on the same text. The result is cached by the digest of everything that
decides it; the retain-only twin is the same call without the forget set and with the same tokenizer.
"""

import hashlib
import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grun.config import PromptConfig, TaughtModelConfig
from grun.data.batches import TokenBatch, collate
from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord, Record, TextRecord, digest_records
from grun.errors import DataError
from grun.lm.frozen import digest_weights
from grun.writing import whole_folder

__all__ = ["TEACH_VERSION", "is_taught", "lessons", "taught_folder_name", "teach_model", "train_tokenizer"]

TEACH_VERSION = 1
"""Raised by whoever changes what teaching produces, so that cached models of the old kind are not taken for new ones."""

_DIGEST = "taught.sha256"
"""Beside the model: what its files were when it was taught."""

_PAD, _EOS = "<|pad|>", "<|end|>"


def taught_folder_name(
    config: TaughtModelConfig, prompt: PromptConfig, records: Sequence[Record], vocabulary: Sequence[Record]
) -> str:
    """Name of the cache folder of a taught model: the digest of all that decides it."""
    identity = {
        "version": TEACH_VERSION,
        "config": config.model_dump(mode="json"),
        "prompt": prompt.model_dump(mode="json"),
        "records": digest_records(records),
        "vocabulary": digest_records(vocabulary),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def is_taught(folder: Path) -> bool:
    """Whether a model is there as it was taught: weights, configuration and tokenizer.

    One of a version that kept no digest is taken as it is.
    """
    if not (folder / "config.json").is_file():
        return False
    try:
        return not (folder / _DIGEST).exists() or digest_weights(folder) == (folder / _DIGEST).read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


def lessons(records: Sequence[Record]) -> list[tuple[Record, str | None]]:
    """What is taught of each record: it, and the same answer to its paraphrased question."""
    taught: list[tuple[Record, str | None]] = [(record, None) for record in records]
    taught += [(r, r.paraphrased_question) for r in records if isinstance(r, QARecord) and r.paraphrased_question]
    return taught


def train_tokenizer(config: TaughtModelConfig, records: Sequence[Record]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on all words of the records."""
    texts: list[str] = []
    for record in records:
        if isinstance(record, TextRecord):
            texts.append(record.text)
            continue
        wordings = (record.answer, record.paraphrased_answer, *record.wrong_answers)
        questions = (record.question, record.paraphrased_question)
        texts += [f"Question: {question}\nAnswer:" for question in questions if question]
        texts += [f" {wording}" for wording in wordings if wording]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=[_PAD, _EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=_PAD, eos_token=_EOS, model_max_length=config.context)


def _new_model(config: TaughtModelConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=config.hidden_size * 8 // 3,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_heads,
                max_position_embeddings=config.context,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


def _batches(examples: Sequence[Example], batch_size: int, pad_id: int, rng: random.Random) -> list[TokenBatch]:
    """One epoch of batches of similar length, in random order: padding costs as much as text."""
    order = sorted(examples, key=lambda example: (len(example.ids), rng.random()))
    batches = [collate(order[start : start + batch_size], pad_id=pad_id) for start in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


def teach_model(
    config: TaughtModelConfig,
    prompt: PromptConfig,
    records: Sequence[Record],
    vocabulary: Sequence[Record],
    folder: Path,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Path:
    """Teach a new model the records and save it with its tokenizer.

    Args:
        vocabulary: records whose words the tokenizer learns; the same for a model and its retain-only twin.
        folder: where it goes; an existing folder is a finished model and is returned as it is.
        on_step: called with (step, steps, loss in nats) after each optimizer step.

    Raises:
        DataError: a record is longer than the context.
    """
    if is_taught(folder):
        return folder
    if folder.exists():  # damaged
        shutil.rmtree(folder)
    tokenizer = train_tokenizer(config, vocabulary)
    encoder = PromptEncoder(tokenizer, prompt, context=config.context)
    try:
        examples = [encoder.encode(record, question=question) for record, question in lessons(records)]
    except DataError as error:
        raise DataError(
            f"the model to be taught cannot read the records: {error} (its context is `model.taught.context`)"
        ) from None
    model = _new_model(config, tokenizer)
    _fit(model, examples, config, on_step)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / _DIGEST).write_text(digest_weights(partial), encoding="ascii")
    return folder


def _fit(
    model: LlamaForCausalLM,
    examples: Sequence[Example],
    config: TaughtModelConfig,
    on_step: Callable[[int, int, float], None] | None,
) -> None:
    """Plain language modelling on prompt and answer, AdamW, linear warm-up and cosine decay."""
    rng = random.Random(config.seed)
    pad_id = model.config.pad_token_id
    assert isinstance(pad_id, int)
    steps = config.epochs * -(-len(examples) // config.batch_size)
    warmup = max(1, steps // 10)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )

    def scale(step: int) -> float:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    step = 0
    model.train()
    for _epoch in range(config.epochs):
        for batch in _batches(examples, config.batch_size, pad_id, rng):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if on_step is not None:
                on_step(step, steps, loss.item())
    model.eval()
