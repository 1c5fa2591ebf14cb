"""Prompts: a record becomes token ids with a prompt span and an answer span.

    ids = [ prompt ........ last prompt token | answer ........ end of text ]
            0             num_prompt_tokens-1   num_prompt_tokens

The prompt is tokenised alone and together with the answer; the prompt's ids must be a prefix of the joint ids, or
the token that the gate reads at inference would not be the one it was trained on. This is checked for every row.
Control tokens that a record spells out are text (:mod:`grun.data.plain_text`).
The end-of-text token is part of the answer, so that the model learns where to stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from grun.config import PromptConfig
from grun.data.plain_text import PlainText
from grun.data.records import QARecord, Record, TextRecord
from grun.data.wrappers.asked import Asked
from grun.errors import DataError

__all__ = ["Example", "PromptEncoder", "prompt_text"]


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised record."""

    digest: str
    """Digest of the record."""
    ids: tuple[int, ...]
    """Prompt and answer."""
    num_prompt_tokens: int
    """Length of the prompt; the last prompt token is at this index minus one."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt alone."""
        return self.ids[: self.num_prompt_tokens]

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The answer alone, end of text included."""
        return self.ids[self.num_prompt_tokens :]

    @property
    def num_answer_tokens(self) -> int:
        """How many tokens the answer has, end of text included."""
        return len(self.ids) - self.num_prompt_tokens

    def shortened(self) -> "Example":
        """The prompt with the first answer token alone: the least that a batch takes, and all that a gate reads."""
        return Example(self.digest, self.ids[: self.num_prompt_tokens + 1], self.num_prompt_tokens)


class PromptEncoder:
    """Encodes records for one tokenizer and one template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig, *, context: int) -> None:
        """Create the encoder.

        Args:
            context: longest sequence of the base model in tokens.

        Raises:
            DataError: the tokenizer has no end-of-text token, or no chat template where one is asked for.
        """
        if tokenizer.eos_token_id is None:
            raise DataError("the tokenizer must name an end-of-text token, got none; set `eos_token` in its configuration")
        if config.template == "chat" and not tokenizer.chat_template:
            raise DataError("`prompt.template: chat` needs a tokenizer with a chat template, got one without; use `qa`")
        self.tokenizer = tokenizer
        self.plain = PlainText(tokenizer)
        self.config = config
        self.max_length = min(context, config.max_length or context)
        self._known: dict[tuple[Record, str | Asked | None, str | None], Example] = {}

    def encode(self, record: Record, *, question: str | Asked | None = None, answer: str | None = None) -> Example:
        """Encode one record, with another question or answer in place of its own where given; each combination once.

        A plain text has no question: it stays as it is.

        Raises:
            DataError: longer than the context, an empty answer, or a prompt that is not a prefix of the joint ids.
        """
        wanted = (record, question, answer)
        if wanted not in self._known:
            self._known[wanted] = (
                self._encode_text(record, answer)
                if isinstance(record, TextRecord)
                else self._encode_qa(record, question or record.question, answer or record.answer)
            )
        return self._known[wanted]

    def prompt_ids(self, question: str | Asked) -> list[int]:
        """Token ids of the prompt that asks `question`."""
        asked = _as_asked(question)
        if self._is_chat(asked):
            return self._chat(_turns(asked), add_generation_prompt=True)
        return self._tokenize(prompt_text(asked))

    def encode_as_written(self, text: str, answer: str, *, digest: str) -> Example:
        """Encode a prompt whose whole wording is given, in place of the template's; with `chat` it is the user's turn.

        Raises:
            DataError: as :meth:`encode`.
        """
        if self.config.template == "chat":
            return self.encode(QARecord(text, answer))
        prompt = self._tokenize(text)
        joint = [*self._tokenize(f"{text} {answer}"), self._eos]
        if joint[: len(prompt)] != prompt or len(joint) <= len(prompt) + 1:
            raise DataError(
                f"the prompt's tokens must be a prefix of prompt and answer, got a prompt that ends in {text[-20:]!r} and merges with "
                f"{answer!r}; use another `prompt.template`"
            )
        if len(joint) > self.max_length:
            raise DataError(
                f"prompt and answer must fit the context of {self.max_length} tokens, got {len(joint)} (digest {digest[:12]}); shorten "
                "the question, or raise `prompt.max_length` up to the model's context"
            )
        return Example(digest, tuple(joint), len(prompt))

    def _is_chat(self, asked: Asked) -> bool:
        """Whether the tokenizer's template is used; a wrapper may bring its own."""
        return self.config.template == "chat" and asked.frame is None

    def _encode_qa(self, record: QARecord, question: str | Asked, answer: str) -> Example:
        asked = _as_asked(question)
        prompt = self.prompt_ids(asked)
        if self._is_chat(asked):
            joint = self._chat([*_turns(asked), {"role": "assistant", "content": answer}], add_generation_prompt=False)
        else:
            # a frame may end in white space, which the answer does not need twice
            text = prompt_text(asked)
            joint = [*self._tokenize(f"{text}{'' if text[-1:].isspace() else ' '}{answer}"), self._eos]
        if joint[: len(prompt)] != prompt or len(joint) == len(prompt):
            raise DataError(
                f"the prompt's tokens must be a prefix of prompt and answer, got a record (digest {record.digest[:12]}) whose answer merges "
                "with the last prompt token; use another `prompt.template` or rewrite the start of its answer"
            )
        self._check_length(record, len(joint))
        return Example(record.digest, tuple(joint), len(prompt))

    def _encode_text(self, record: TextRecord, answer: str | None) -> Example:
        ids = self._tokenize(record.text)[: self.max_length - 1]
        num_prompt = int(self.config.text_prompt_frac * len(ids))
        if num_prompt < 1 or num_prompt == len(ids):
            raise DataError(
                f"a text must be long enough for a prompt and an answer, got {len(ids)} token(s) (digest {record.digest[:12]}); "
                "lengthen it, drop it, or change `prompt.text_prompt_frac`"
            )
        tail = ids[num_prompt:] if answer is None else self._tokenize(f" {answer}", special=False)
        joint = [*ids[:num_prompt], *tail][: self.max_length - 1]
        return Example(record.digest, (*joint, self._eos), num_prompt)

    def _check_length(self, record: Record, length: int) -> None:
        if length > self.max_length:
            raise DataError(
                f"prompt and answer must fit the context of {self.max_length} tokens, got {length} "
                f"(digest {record.digest[:12]}); shorten the record, or raise `prompt.max_length` up to the model's context"
            )

    @property
    def _eos(self) -> int:
        eos = self.tokenizer.eos_token_id
        assert isinstance(eos, int)
        return eos

    def _tokenize(self, text: str, *, special: bool = True) -> list[int]:
        ids = self.plain.tokenize(text, special=special)
        # some tokenizers close every sequence themselves; the end of the prompt is not the end of the text
        return ids[:-1] if special and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids

    def _chat(self, turns: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> list[int]:
        return self.plain.chat(turns, add_generation_prompt=add_generation_prompt, date_string=self.config.chat_date)


def _as_asked(question: str | Asked) -> Asked:
    return question if isinstance(question, Asked) else Asked(question)


def prompt_text(asked: Asked) -> str:
    """The prompt as text, where no chat template is used."""
    frame = asked.frame or "Question: {q}\nAnswer:"
    earlier = "".join(f"{frame.format(q=question)} {answer}\n" for question, answer in asked.turns)
    return f"{asked.before}{earlier}{frame.format(q=asked.question)}"


def _turns(asked: Asked) -> list[dict[str, str]]:
    """The conversation, where a chat template is used."""
    earlier = [
        {"role": role, "content": text} for turn in asked.turns for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*earlier, {"role": "user", "content": f"{asked.before}{asked.question}"}]
