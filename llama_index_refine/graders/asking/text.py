"""Document text on its way into a prompt: cut to a budget, cleaned, and fenced, because its author may be hostile."""

from __future__ import annotations

import hashlib
import logging
import re

from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.utils import get_tokenizer

# No tokenizer spends fewer tokens on text of this many characters, save on long runs of one character.
_CHARACTERS_PER_TOKEN = 12
# So much of a text is looked at for each of its tokens, with what is dropped from it.
_LONGEST_SHARE = 8 * _CHARACTERS_PER_TOKEN
# Half of what English text has: an estimate may be too high, and not too low.
_FEWEST_BYTES_PER_TOKEN = 2
# What metadata and text take that stand beside each other, at the most.
_BETWEEN = 3

logger = logging.getLogger(__name__)

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff]"
    r"|[\U000e0000-\U000e007f]"
)
# What chat templates use to end a turn and begin another, by its forms: `<|...|>`, `[|...|]`, `<name:...>`, `]~...`,
# names with an underscore in tags or capitals, and short ones of old. Servers may read it as such in a message too.
_TEMPLATE_TOKEN = re.compile(
    r"<(?=[|\uff5c]|/?(?:s|think|[besu]o[dpst]|pad|unk|mask|cls|sep|tools|role|ai|\w+[:_]\w*)>|</?SYS>>|/?document"
    r"|\w{1,20}[|\uff5c]>|unused\d+>|\s?EOT\s?>|[^\W\x00-\u2fff]{1,8}>)"
    r"|\[(?=[|\uff5c]|\w?~|/?(?:[A-Z]+_[A-Z_]+|INST|IMG|THINK|EOT|CLS|SEP|PAD|MASK|UNK|BOS|EOS|gMASK)\]|unused\d+\])"
    r"|\](?=~)|\u25c1(?=/?\w)",
    re.IGNORECASE,
)


def count_tokens(text: str) -> int:
    """Count the tokens of a text with LlamaIndex's tokenizer (`Settings.tokenizer`).

    A tokenizer that fails, because it refuses a text or cannot be loaded, is replaced by an estimate on the safe side.
    """
    try:
        return len(get_tokenizer()(text))
    except Exception as error:
        logger.warning("The tokenizer failed (%s): a text's tokens are estimated by its length", type(error).__name__)
        return -(-len(text.encode(errors="replace")) // _FEWEST_BYTES_PER_TOKEN)


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


def content(node: BaseNode, mode: MetadataMode, max_tokens: int) -> str:
    """Return a node's text with its metadata, cleaned; of the metadata as much is left out as the text needs room.

    :param node: the node.
    :param mode: which of its metadata.
    :param max_tokens: the budget for both, at least 1, in tokens of LlamaIndex's tokenizer.
    :return: what LlamaIndex makes of the two where it fits, else as much of the metadata as fits before the text. A
        text that is too long by itself is whole.
    """
    longest = max_tokens * _LONGEST_SHARE
    # A `Node` without text says nothing of its metadata either.
    whole = node.get_content(mode) or node.get_metadata_str(mode)
    if len(whole) <= longest and cut(cleaned := clean(whole), max_tokens) == cleaned:
        return cleaned
    text = clean(node.get_content(MetadataMode.NONE)[:longest])
    room = max_tokens - count_tokens(text) - _BETWEEN if cut(text, max_tokens) == text else 0
    metadata = clean(node.get_metadata_str(mode)[:longest])
    return f"{cut(metadata, room)}\n\n{text}" if room > 0 else text


def clean(text: str) -> str:
    """Make a text safe to count and to send.

    Control and invisible characters go, halves of a character are joined or else replaced by U+FFFD, and what a chat
    template would take for the end of a turn is broken up.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _TEMPLATE_TOKEN.sub(lambda match: f"{match.group()} ", _CONTROL.sub("", text))


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
