"""Text as it comes: whole characters, no stop strings, nothing lost."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipelines.serving.text import TextStream


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, stops: Sequence[str] = (), prompt: Sequence[int] = ()) -> list[str]:
    """What comes out token by token, and at the end."""
    stream = TextStream(tokenizer, prompt, stops)
    out = []
    for token in tokenizer(text)["input_ids"]:
        out.append(stream.push(token))
        if stream.stopped:
            return out
    return [*out, stream.finish()]


@given(text=st.text(max_size=30))
def test_nothing_is_lost_and_no_character_is_torn(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    said = pieces(tokenizer, text)
    assert "".join(said) == text
    assert not any("\ufffd" in piece for piece in said) or "\ufffd" in text


def test_a_character_of_several_tokens_comes_in_one_piece(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer("é")["input_ids"]) == 2
    assert pieces(tokenizer, "é") == ["", "é", ""]


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer, (), ())
    assert stream.push(tokenizer("é")["input_ids"][0]) == ""
    assert stream.finish() == "\ufffd"


def test_bytes_that_never_become_a_character_do_not_hold_the_rest_back(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer, (), ())
    half = tokenizer("é")["input_ids"][0]
    said = [stream.push(half) for _ in range(20)]
    assert "".join(said).count("\ufffd") >= 8


@pytest.mark.parametrize(
    ("text", "stops", "said"),
    [
        ("one two. three", (".",), "one two"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("one\ntwo", ("\n\n",), "one\ntwo"),
        ("aaab", ("aab",), "a"),  # a start of the stop string that turns out to be none
        ("xyz", ("yz", "xy"), ""),  # the one that begins first
        ("stop", ("stop",), ""),
        ("a sto", ("stop",), "a sto"),  # held back, and released at the end
    ],
)
def test_a_stop_string_ends_the_text_before_it(
    tokenizer: PreTrainedTokenizerFast, text: str, stops: tuple[str, ...], said: str
) -> None:
    assert "".join(pieces(tokenizer, text, stops)) == said


def test_what_could_become_a_stop_string_is_held_back(tokenizer: PreTrainedTokenizerFast) -> None:
    said = pieces(tokenizer, "ab##c", ("###",))
    assert "".join(said) == "ab##c"
    assert not any(piece.endswith("#") for piece in said), "two of three would have been shown before the third came"


@given(text=st.text("ab", max_size=12), stop=st.text("ab", min_size=1, max_size=4))
def test_stopping_is_cutting_at_the_first_occurrence(tokenizer: PreTrainedTokenizerFast, text: str, stop: str) -> None:
    assert "".join(pieces(tokenizer, text, (stop,))) == text.split(stop)[0]


def test_a_space_that_the_tokenizer_shows_only_between_words_is_not_lost() -> None:
    """Tokenizers that mark the start of a word drop the mark at the start of a text: the prompt says that it is none."""
    words = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "?": 2}, unk_token="?"))
    words.normalizer = normalizers.Prepend("▁")
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert TextStream(tokenizer, (0,), ()).push(1) == " b"
    assert TextStream(tokenizer, (), ()).push(1) == "b"
