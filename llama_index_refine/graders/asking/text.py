"""Document text on its way into a prompt: cut to a budget, cleaned, and fenced, because its author may be hostile."""

from __future__ import annotations

import hashlib
import re

from llama_index.core.utils import get_tokenizer

# No tokenizer spends fewer tokens on text of this many characters, save on long runs of one character.
_CHARACTERS_PER_TOKEN = 12

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]|[\U000e0000-\U000e007f]"
)
# What chat templates use to end a turn and begin another. Servers may read it as such inside a message too.
_TEMPLATE_TOKEN = re.compile(
    r"<(?=[|\uff5c]|/?s>|/?think>|(?:start|end)_of_turn>|</?SYS>>|/?document)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])",
    re.IGNORECASE,
)


def count_tokens(text: str) -> int:
    """Count the tokens of a text with LlamaIndex's tokenizer (`Settings.tokenizer`)."""
    return len(get_tokenizer()(text))


def cut(text: str, max_tokens: int) -> str:
    """Cut a text to a token budget, at its end.

    :param text: any text.
    :param max_tokens: the budget, at least 1, in tokens of LlamaIndex's tokenizer.
    :return: the text where it fits, else as much of its beginning as was found to fit.
    """
    if len(text.encode(errors="replace")) <= max_tokens:
        return text
    text = text[: max_tokens * _CHARACTERS_PER_TOKEN]
    while (tokens := count_tokens(text)) > max_tokens:
        text = text[: min(len(text) - 1, len(text) * max_tokens // tokens)]
    return text


def clean(text: str) -> str:
    """Drop control and invisible characters, and break what a chat template would take for the end of a turn."""
    text = _CONTROL.sub("", text).encode(errors="replace").decode()
    return _TEMPLATE_TOKEN.sub(lambda match: f"{match.group()} ", text)


def fence(text: str, label: str = "document") -> str:
    """Put a text between two tags that it cannot contain.

    The tag carries a hash of the text itself: whoever writes a text that closes its own fence has found a fixed point
    of 80 bits of SHA-256. The same text always has the same fence, so a prompt can be repeated and cached.

    :param text: the text.
    :param label: what the tag says before the hash.
    :return: the text on lines of its own between an opening and a closing tag.
    """
    tag = f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    return f"<{tag}>\n{text}\n</{tag}>"


def fenced(text: str, max_tokens: int, label: str = "document") -> str:
    """Cut, clean and fence a document's text: the only form in which it enters a prompt."""
    return fence(clean(cut(text, max_tokens)), label)
