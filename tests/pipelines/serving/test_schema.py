"""Bodies: what is taken, what is refused, and with which words."""

import json
from typing import Any

import pytest

from pipelines.serving.refusals import RefusedError
from pipelines.serving.schema import ChatRequest, CompletionRequest, parse_body

SECRET = "Ilva Torrent's number"
PLAIN = {"model": "m", "prompt": "p"}
SAID: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "p"}]}


def completion(**fields: Any) -> CompletionRequest:
    return parse_body(json.dumps({**PLAIN, **fields}).encode(), CompletionRequest)


def refused(body: bytes, schema: type[CompletionRequest] | type[ChatRequest] = CompletionRequest) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse_body(body, schema)
    assert caught.value.status == 400
    assert SECRET not in json.dumps(caught.value.body())
    return caught.value


def test_defaults_are_openais() -> None:
    request = completion()
    assert (request.temperature, request.top_p, request.n, request.stop, request.stream) == (1.0, 1.0, 1, (), False)
    assert request.max_tokens is None
    assert not request.grun.telemetry


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ([], [])],
)
def test_a_prompt_is_one_or_several_texts_or_token_lists(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).prompts == prompts


def test_nulls_neutral_values_and_unknown_fields_are_left_alone() -> None:
    request = completion(
        seed=None, stop=None, n=None, stream_options=None, echo=False, logprobs=None, presence_penalty=0, frequency_penalty=0.0,
        logit_bias={}, user="u", metadata={"a": 1}, best_of=1, a_field_of_tomorrow=[1],
    )  # fmt: skip
    assert (request.seed, request.stop, request.n) == (None, (), 1)


def test_stop_is_a_text_or_up_to_four() -> None:
    assert completion(stop="x").stop == ("x",)
    assert completion(stop=["x", "y"]).stop == ("x", "y")


def test_contents_in_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parse_body(json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode(), ChatRequest)
    assert request.messages[0].text == "ab"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "must be JSON in UTF-8, got an empty one; send"),
        (b" \n", "must be JSON in UTF-8, got an empty one; send"),
        (b"{", "must be JSON in UTF-8, got other text (Expecting property name enclosed in double quotes: line 1 column 2"),
        (b'{"model": "m", "prompt": "\xff"}', "must be JSON in UTF-8, got other text (byte 26 is not UTF-8)"),
        (json.dumps(PLAIN).encode("utf-16-le"), "must be JSON in UTF-8, got other text (Expecting"),
        (b'{"model": "m", "prompt": "\\ud800"}', "got other text (half a surrogate pair, which is no character)"),
        (b'{"model": "m", "prompt": "p", "unknown": "\\ud800"}', "got other text (half a surrogate pair, which is no character)"),
        (b"[" * 100_000, "got other text (nested too deeply)"),
        (b'{"model": "m", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", "got other text (an integer of thousands of digits)"),
        (b'{"model": "m", "prompt": "p", "unknown": [NaN]}', "got other text (NaN, which is no JSON number)"),
        (b'{"model": "m", "prompt": "p", "temperature": Infinity}', "got other text (Infinity, which is no JSON number)"),
        (b'{"model": "m", "prompt": "p", "prompt": "q"}', "must have each key once in an object, got `prompt` twice; leave one"),
        (
            json.dumps({**PLAIN, "unknown": {SECRET: 1, "-": 2}}).replace('"-"', json.dumps(SECRET)).encode(),
            "must have each key once in an object, got a key twice; leave one",
        ),
        (b"[]", "must be a JSON object, got a list"),
        (b"3", "must be a JSON object, got a number"),
        (b"null", "must be a JSON object, got a null"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, message: str) -> None:
    assert message in refused(body).message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": [SECRET, 3]}, "prompt"),
        ({"prompt": {"text": SECRET}}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"model": 3}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [SECRET, 3]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options"),
        ({"grun": {"telemetry": 1}}, "grun"),
        ({"echo": True}, "echo"),
        ({"logprobs": 0}, "logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"suffix": SECRET}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"best_of": 2}, "best_of"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named_and_its_value_is_not_repeated(fields: dict[str, Any], param: str) -> None:
    error = refused(json.dumps({**PLAIN, **fields}).encode())
    assert error.param == param
    assert f"`{param}" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": SECRET}, "messages"),
        ({"messages": [{"role": "wizard", "content": SECRET}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": SECRET}}]}]}, "messages"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None),
    ],
    ids=str,
)
def test_a_wrong_conversation_is_refused(fields: dict[str, Any], param: str | None) -> None:
    assert refused(json.dumps({**SAID, **fields}).encode(), ChatRequest).param == param


TEXT = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    "content",
    [None, 3, {}, ["a"], [TEXT, {"type": "image_url", "image_url": {"url": SECRET}}], [{"type": "text", "text": 3}]],
    ids=str,
)
def test_what_is_no_text_in_a_conversation_is_said_to_be_none(content: Any) -> None:
    messages = [*SAID["messages"], {"role": "user", "content": content}]
    message = refused(json.dumps({**SAID, "messages": messages}).encode(), ChatRequest).message
    assert message.startswith("`messages.1.content` must be a text or a list of parts of type `text`, got something else")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grun": 5}, "`grun` must be a mapping of fields, got"),
        ({"stream_options": []}, "`stream_options` must be a mapping of fields, got"),
        ({"messages": [5]}, "`messages.0` must be a mapping of fields, got"),
        ({"messages": []}, "`messages` must have at least 1 item, got"),
        ({"messages": [{"role": "user"}]}, "`messages.0.content` must be given, got none; add it"),
        ({"temperature": 2.1}, "`temperature` must be less than or equal to 2, got"),
        ({"stop": 3}, "`stop` must be a list, got"),
    ],
)
def test_rules_are_in_words_that_a_client_knows(fields: dict[str, Any], message: str) -> None:
    assert refused(json.dumps({**SAID, **fields}).encode(), ChatRequest).message.startswith(message)
