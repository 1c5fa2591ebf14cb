"""From what a client wrote to token ids, in the template that the adapters were trained with.

Control tokens in a client's text are text (:mod:`grun.data.plain_text`).
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from grun.config import PromptConfig
from grun.data.plain_text import PlainText
from grun.data.prompts import PromptEncoder, prompt_text
from grun.data.wrappers.asked import Asked
from pipelines.serving.refusals import invalid
from pipelines.serving.schema import Message

__all__ = ["PromptReader"]


class PromptReader:
    """Reads prompts for one tokenizer and one template.

    Raises:
        DataError: as :class:`PromptEncoder`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig, *, context: int) -> None:
        PromptEncoder(tokenizer, config, context=context)  # refuses what it could not have been trained with
        self._tokenizer = tokenizer
        self._config = config
        self._plain = PlainText(tokenizer)
        self.context = context
        """Longest sequence of the base in tokens."""

    @property
    def strips_answers(self) -> bool:
        """Whether an answer starts with the space that separates it from its prompt, which is not of it."""
        return self._config.template == "qa"

    def written(self, text: str) -> list[int]:
        """Token ids of a prompt, taken as it is written."""
        ids = self._plain.tokenize(text)
        # some tokenizers close every sequence themselves; the end of the prompt is not the end of the text
        return ids[:-1] if len(ids) > 1 and ids[-1] == self._tokenizer.eos_token_id else ids

    def given(self, ids: Sequence[int]) -> list[int]:
        """Check token ids.

        Raises:
            RefusedError: one that the base does not know.
        """
        size = len(self._tokenizer)
        if any(not 0 <= token < size for token in ids):
            raise invalid(f"token ids must lie in 0..{size - 1}, got one outside; use this base's tokenizer", "prompt")
        return list(ids)

    def asked(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation that waits for its next answer.

        Raises:
            RefusedError: the turns are not in an order that the template has a place for.
        """
        return self._chat(messages) if self._config.template == "chat" else self.written(prompt_text(_conversation(messages)))

    def _chat(self, messages: Sequence[Message]) -> list[int]:
        turns = [{"role": message.role, "content": message.text} for message in messages]
        try:
            return self._plain.chat(turns, add_generation_prompt=True, date_string=self._config.chat_date)
        except Exception as error:  # noqa: BLE001 - templates raise whatever their authors thought of
            raise invalid(
                f"`messages` must be in an order that the base's chat template takes, got one that it refuses ({type(error).__name__}); "
                "let user and assistant take turns, and end with the user",
                "messages",
            ) from None


def _conversation(messages: Sequence[Message]) -> Asked:
    """A conversation in the words of the `qa` template: what the system says stands before it."""
    spoken = [message for message in messages if message.role in ("user", "assistant")]
    if [message.role for message in spoken] != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise invalid("`messages` must let user and assistant take turns and end with the user, got another order", "messages")
    before = "".join(f"{message.text}\n\n" for message in messages if message.role in ("system", "developer"))
    turns = tuple((question.text, answer.text) for question, answer in zip(spoken[:-1:2], spoken[1::2], strict=True))
    return Asked(spoken[-1].text, before=before, turns=turns)
