"""Text stays text: control tokens belong to templates, and spelled out in somebody's words they are words.

Otherwise a record or a client could end its own turn and speak as somebody else. Control tokens are those that the tokenizer calls
special, whether it has a role for them or not, and those that its chat template writes (`<think>`, `<tool_call>`).

In a text, the first kind is left to the tokenizer (`split_special_tokens`), which no longer sees it; one of the second kind is
tokenised in two parts. In a chat, each is a mark while the template is rendered, and tokenised by itself afterwards. A text without
control tokens gets the ids that it would get without all this.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

__all__ = ["PlainText", "control_tokens"]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The spelling of every control token, longest first."""
    added = {str(token.content): bool(token.special) for token in tokenizer.added_tokens_decoder.values()}
    special = {*map(str, tokenizer.all_special_tokens), *(text for text, is_special in added.items() if is_special)}
    written = {text for text in added if len(text.strip()) > 1 and text in str(tokenizer.chat_template or "")}
    return tuple(sorted(special | written, key=lambda text: (-len(text), text)))


class PlainText:
    """Tokenises what people wrote, by itself or in the tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._controls = control_tokens(tokenizer)
        self._any = re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")
        hidden = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        seen = [text for text in self._controls if text not in hidden and text not in tokenizer.all_special_tokens]
        self._seen = re.compile("|".join(map(re.escape, seen)) or r"(?!)")
        """Control tokens that the tokenizer still sees when it is told to split special ones."""

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            special: whether the tokens come first that start every sequence.
        """
        met = self._seen.search(text)
        if met is None:
            ids: list[int] = self._tokenizer(text, add_special_tokens=special, split_special_tokens=True)["input_ids"]
            return ids
        cut = met.start() + 1
        begun = self._closed(self.tokenize(text[:cut], special=special)) if special else self.tokenize(text[:cut], special=False)
        return [*begun, *self.tokenize(text[cut:], special=False)]

    def chat(self, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool, date_string: str) -> list[int]:
        """Token ids of a conversation in the tokenizer's chat template.

        Args:
            turns: `role` and `content` of each.

        Raises:
            Exception: whatever the template raises where it has no place for such turns.
        """
        # a text that held its own digest could pretend to be a mark
        mark = hashlib.sha256(repr([turn["content"] for turn in turns]).encode("utf-8", "backslashreplace")).hexdigest()
        numbers = {text: number for number, text in enumerate(self._controls)}

        def marked(text: str) -> str:
            return self._any.sub(lambda met: f"[{mark}:{numbers[met[0]]}]", text)

        render: Any = self._tokenizer.apply_chat_template
        text: str = render(
            [{**turn, "content": marked(turn["content"])} for turn in turns],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=date_string,
        )
        first, *rest = text.split(f"[{mark}:")
        ids = self._of_template(first)
        for part in rest:
            number, _, after = part.partition("]")
            ids += self.tokenize(self._controls[int(number)], special=False) + self._of_template(after)
        return ids

    def _of_template(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return ids

    def _closed(self, ids: list[int]) -> list[int]:
        """The ids without the end that some tokenizers put after every text: this one goes on."""
        return ids[:-1] if len(ids) > 1 and ids[-1] == self._tokenizer.eos_token_id else ids
