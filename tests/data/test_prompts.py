"""Prompts: where the prompt ends and the answer begins, for both kinds of record and both templates."""

import copy
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grun.config import PromptConfig
from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord, Record, TextRecord, read_jsonl
from grun.errors import DataError

RECORD = QARecord("Where does Ilva live?", "In Harn.", paraphrased_question="Ilva lives where?")
TEXT = TextRecord("Bells ring at noon over the roofs of Harn, and nobody minds them any more.")

# prints a date of its own unless one is given, as the templates of Llama 3 do
CHAT = """{%- if date_string is not defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}
{{- '[' + date_string + ']' }}
{%- for message in messages %}{{- '\\n' + message.role + ': ' + message.content }}
{%- if message.role == 'assistant' %}{{- eos_token }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '\\nassistant:' }}{%- endif %}"""

Encoder = Callable[..., PromptEncoder]


@pytest.fixture(scope="session")
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Build an encoder: `encoder(context=..., template=...)`."""

    def build(context: int = 256, use: PreTrainedTokenizerBase = tokenizer, **fields: Any) -> PromptEncoder:
        return PromptEncoder(use, PromptConfig(**fields), context=context)

    return build


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    other = copy.deepcopy(tokenizer)
    other.chat_template = CHAT
    return other


def parts(encoder: PromptEncoder, example: Example) -> tuple[str, str]:
    """Prompt and answer as text, special tokens shown."""
    decode = encoder.tokenizer.decode
    return str(decode(list(example.prompt_ids))), str(decode(list(example.ids[example.num_prompt_tokens :])))


def test_question_and_answer(encoder: Encoder) -> None:
    qa = encoder()
    example = qa.encode(RECORD)
    assert parts(qa, example) == ("Question: Where does Ilva live?\nAnswer:", " In Harn.<|end|>")
    assert example.digest == RECORD.digest
    assert example.num_prompt_tokens + example.num_answer_tokens == len(example.ids)
    assert list(example.prompt_ids) == qa.prompt_ids(RECORD.question), "training and serving must meet the same last token"


def test_other_wording_keeps_the_record(encoder: Encoder) -> None:
    qa = encoder()
    example = qa.encode(RECORD, question=RECORD.paraphrased_question, answer="I do not know.")
    assert parts(qa, example) == ("Question: Ilva lives where?\nAnswer:", " I do not know.<|end|>")
    assert example.digest == RECORD.digest


lines = st.text(alphabet=string.printable + "äß字🜁", min_size=1).map(str.strip).filter(bool)


@given(question=lines, answer=lines)
def test_prompt_is_a_prefix_and_the_end_of_text_is_the_last_target(encoder: Encoder, question: str, answer: str) -> None:
    qa = encoder(context=2048)
    example = qa.encode(QARecord(question, answer))
    eos = qa.tokenizer.eos_token_id
    assert list(example.prompt_ids) == qa.prompt_ids(question)
    assert example.ids[-1] == eos
    assert eos not in example.ids[:-1]
    assert parts(qa, example)[1] == f" {answer}<|end|>"


def test_every_row_of_the_real_tofu(encoder: Encoder, tofu_folder: Path) -> None:
    qa = encoder(context=1024)
    records = read_jsonl(tofu_folder / "full.json")
    assert len(records) == 4000
    for record in records:
        assert isinstance(record, QARecord)
        example = qa.encode(record)
        assert list(example.prompt_ids) == qa.prompt_ids(record.question)
        assert example.num_answer_tokens >= 2


def test_answer_that_merges_with_the_prompt_is_refused(encoder: Encoder) -> None:
    """A tokenizer without word boundaries, with a token for the colon and the space after it."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Tokenizer(models.BPE({**alphabet, ":Ġ": 256, "<|end|>": 257}, [(":", "Ġ")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merging = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    with pytest.raises(DataError, match=r"must be a prefix .*answer merges with the last prompt token; use another") as caught:
        encoder(use=merging).encode(RECORD)
    assert RECORD.digest[:12] in str(caught.value)
    assert "Harn" not in str(caught.value)


def test_tokenizer_that_frames_every_text_itself(encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> None:
    """A beginning is kept, once; an end is put behind the answer only, once."""
    framing = copy.deepcopy(tokenizer)
    start, end = tokenizer.convert_tokens_to_ids("!"), tokenizer.eos_token_id
    framing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="! $A <|end|>", special_tokens=[("!", start), ("<|end|>", end)]
    )
    plain, framed = encoder(), encoder(use=framing)
    for record in (RECORD, TEXT):
        assert framed.encode(record).ids[0] == start
        assert framed.encode(record).ids[1:] == plain.encode(record).ids
    assert framed.encode(RECORD).prompt_ids == (start, *plain.encode(RECORD).prompt_ids)
    assert framed.encode(TEXT, answer="And so on.").ids.count(end) == 1
    assert framed.encode(TEXT, answer="And so on.").ids.count(start) == 1


@pytest.mark.parametrize(("context", "max_length", "limit"), [(8, None, 8), (8, 64, 8), (64, 9, 9)])
def test_too_long(encoder: Encoder, context: int, max_length: int | None, limit: int) -> None:
    short = encoder(context=context, max_length=max_length)
    with pytest.raises(
        DataError, match=rf"must fit the context of {limit} tokens, got \d+ \(digest {RECORD.digest[:12]}\); shorten"
    ):
        short.encode(RECORD)


def test_longest_that_fits(encoder: Encoder) -> None:
    length = len(encoder().encode(RECORD).ids)
    assert len(encoder(context=length).encode(RECORD).ids) == length
    with pytest.raises(DataError, match=f"got {length} "):
        encoder(context=length - 1).encode(RECORD)


@pytest.mark.parametrize("frac", [0.25, 0.8])
def test_text_is_cut_at_its_share(encoder: Encoder, tokenizer: PreTrainedTokenizerFast, frac: float) -> None:
    text = encoder(text_prompt_frac=frac)
    example = text.encode(TEXT)
    ids: list[int] = tokenizer(TEXT.text)["input_ids"]
    assert example.ids == (*ids, tokenizer.eos_token_id)
    assert example.num_prompt_tokens == int(frac * len(ids))
    assert "".join(parts(text, example)) == f"{TEXT.text}<|end|>"


def test_long_text_is_cut_to_the_context(encoder: Encoder) -> None:
    whole, cut = encoder().encode(TEXT), encoder(context=12, text_prompt_frac=0.5).encode(TEXT)
    assert cut.ids == (*whole.ids[:11], whole.ids[-1])
    assert cut.num_prompt_tokens == 5


def test_text_with_another_answer(encoder: Encoder) -> None:
    text = encoder()
    example = text.encode(TEXT, answer="I do not know.")
    assert parts(text, example)[1] == " I do not know.<|end|>"
    assert example.prompt_ids == text.encode(TEXT).prompt_ids


@pytest.mark.parametrize(("text", "frac"), [("!", 0.8), ("!?", 0.3)])
def test_text_too_short_for_a_prompt(encoder: Encoder, text: str, frac: float) -> None:
    with pytest.raises(DataError, match=rf"long enough for a prompt and an answer, got {len(text)} token\(s\).*lengthen it"):
        encoder(text_prompt_frac=frac).encode(TextRecord(text))


def test_chat_template_prints_the_pinned_date(encoder: Encoder, chatty: PreTrainedTokenizerFast) -> None:
    chat = encoder(use=chatty, template="chat")
    assert parts(chat, chat.encode(RECORD)) == (
        "[26 Jul 2024]\nuser: Where does Ilva live?\nassistant:",
        " In Harn.<|end|>",
    )
    dated = encoder(use=chatty, template="chat", chat_date="01 Jan 2030")
    assert parts(dated, dated.encode(RECORD))[0].startswith("[01 Jan 2030]")


def test_chat_template_that_does_not_continue_its_own_prompt(encoder: Encoder, chatty: PreTrainedTokenizerFast) -> None:
    chatty.chat_template = CHAT.replace("'\\nassistant:'", "'\\nassistant: <think>'")
    with pytest.raises(DataError, match=r"must be a prefix"):
        encoder(use=chatty, template="chat").encode(RECORD)


def test_tokenizer_lacks_what_the_template_needs(encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="needs a tokenizer with a chat template, got one without; use `qa`"):
        encoder(template="chat")
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(DataError, match="must name an end-of-text token, got none; set `eos_token`"):
        encoder(use=endless)


@pytest.mark.parametrize("record", [RECORD, TEXT])
@pytest.mark.parametrize("template", ["qa", "chat"])
def test_encoding_is_a_function_of_the_record(
    encoder: Encoder, chatty: PreTrainedTokenizerFast, record: Record, template: Literal["qa", "chat"]
) -> None:
    first, second = (encoder(use=copy.deepcopy(chatty), template=template).encode(record) for _ in range(2))
    assert first == second
