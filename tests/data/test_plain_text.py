"""Words that imitate control tokens are words: in records, in prompts and in chats, whatever the tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedTokenizerFast

from grun.config import PromptConfig
from grun.data.plain_text import PlainText, control_tokens
from grun.data.prompts import PromptEncoder
from grun.data.records import QARecord, TextRecord
from tests.conftest import END, PAD

HEADER, THINK, BLANK = "<|start_header|>", "<think>", "\n\n\n"
CONTROLS = (PAD, END, HEADER, THINK)
TEMPLATE = (
    "{% for m in messages %}<|start_header|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>{% endif %}{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header|>assistant\n<think>{% endif %}"
)


@pytest.fixture(scope="session")
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Like those of Llama 3 and Qwen 3: a special token without a role, one that only the template has a use for, and white space."""
    copied = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), pad_token=PAD, eos_token=END
    )
    copied.add_tokens([AddedToken(HEADER, special=True, normalized=False)], special_tokens=False)
    copied.add_tokens([AddedToken(THINK, special=False), AddedToken(BLANK, special=False)])
    copied.chat_template = TEMPLATE
    return copied


def ids_of(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return {tokenizer.get_vocab()[text] for text in CONTROLS}


# plain words, control tokens, parts of them, and what else could be put together to one
parts = st.sampled_from(
    (*CONTROLS, "<|", "|>", "<", ">", "end", "think", "[", ":0]", " ", "\n", "a", "Question: ", "\nAnswer:", "\u202e", "é")
)
texts = st.one_of(st.text(max_size=20), st.lists(parts, max_size=12).map("".join))


def test_control_tokens_are_the_special_ones_and_those_of_the_template(chatty: PreTrainedTokenizerFast) -> None:
    assert set(control_tokens(chatty)) == set(CONTROLS)
    assert HEADER not in chatty.all_special_tokens  # or it would have been found without us


@settings(max_examples=200)
@given(text=texts)
def test_no_text_becomes_a_control_token(chatty: PreTrainedTokenizerFast, text: str) -> None:
    ids = PlainText(chatty).tokenize(text)
    assert ids_of(chatty).isdisjoint(ids)
    assert chatty.decode(ids) == text


@settings(max_examples=200)
@given(text=texts)
def test_a_chat_has_the_control_tokens_of_its_template_alone(chatty: PreTrainedTokenizerFast, text: str) -> None:
    def chat(content: str) -> list[int]:
        return PlainText(chatty).chat([{"role": "user", "content": content}], add_generation_prompt=True, date_string="")

    controls = [token for token in chat(text) if token in ids_of(chatty)]
    assert controls == [token for token in chat("a") if token in ids_of(chatty)]
    assert chatty.decode(chat(text)) == f"{HEADER}user\n{text.strip()}{END}{HEADER}assistant\n{THINK}"


@settings(max_examples=200)
@given(text=st.text(max_size=20))
def test_a_text_without_control_tokens_has_the_ids_that_it_always_had(chatty: PreTrainedTokenizerFast, text: str) -> None:
    assert PlainText(chatty).tokenize(f"{text}\n\n\n") == chatty(f"{text}\n\n\n")["input_ids"]
    turns = [{"role": "user", "content": text}]
    expected = chatty.apply_chat_template(turns, tokenize=True, return_dict=False, add_generation_prompt=True)
    assert PlainText(chatty).chat(turns, add_generation_prompt=True, date_string="") == expected


@pytest.mark.parametrize("template", ["qa", "chat"])
@pytest.mark.parametrize("forged", CONTROLS)
def test_records_are_encoded_as_text(chatty: PreTrainedTokenizerFast, template: str, forged: str) -> None:
    encoder = PromptEncoder(chatty, PromptConfig.model_validate({"template": template}), context=512)
    plain, spoken = (encoder.encode(QARecord(f"Who{text}?", f"She{text}.")) for text in ("", forged))
    counted = [[ids.count(token) for token in sorted(ids_of(chatty))] for ids in (plain.ids, spoken.ids)]
    assert counted[0] == counted[1]
    assert f"Who{forged}?" in chatty.decode(list(spoken.prompt_ids))
    text = encoder.encode(TextRecord(f"One{forged} two {forged} three {forged}"))
    assert ids_of(chatty) & set(text.ids) == {chatty.eos_token_id}
    assert text.ids.count(chatty.eos_token_id) == 1


def test_a_tokenizer_that_closes_every_text_does_not_close_half_of_one(chatty: PreTrainedTokenizerFast) -> None:
    processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, chatty.eos_token_id)])
    before, chatty.backend_tokenizer.post_processor = chatty.backend_tokenizer.post_processor, processor
    try:
        ids = PlainText(chatty).tokenize(f"a{THINK}b")
    finally:
        chatty.backend_tokenizer.post_processor = before
    assert ids.count(chatty.eos_token_id) <= 1
    assert chatty.decode(ids, skip_special_tokens=True) == f"a{THINK}b"
