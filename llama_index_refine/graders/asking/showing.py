"""What a teacher is shown of a query and of a document: text, and images at their place in it.

Text is cut to a budget, cleaned and fenced, because its author may be hostile.
"""

from __future__ import annotations

import hashlib
import logging
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle
from llama_index.core.utils import get_tokenizer

from llama_index_refine.graders.asking.failures import BLIND
from llama_index_refine.graders.asking.loop import in_thread
from llama_index_refine.images.reading import ImageError, ImageReader, Picture, fitted, pixels_of
from llama_index_refine.images.sources import Media, image_of, media_of

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
        text that is too long by itself is whole, or longer than any cut leaves it.
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


MAX_IMAGE_PIXELS = 1_000_000
# What Anthropic's documentation gives; others count tiles, which comes to about the same.
_PIXELS_PER_TOKEN = 750


@dataclass(frozen=True)
class Shown:
    """A query or a document, as it enters a prompt.

    :param text: its text, cleaned.
    :param images: its images, by the mark that stands for each in the prompt.
    :param refusal: why it cannot be asked about; empty where it can.
    """

    text: str
    images: Mapping[str, ImageBlock] = field(default_factory=dict)
    refusal: str = ""

    def why_not(self, blind: bool) -> str:
        """Say why a model is not asked about it, empty where it is. :param blind: whether the model takes no images."""
        return self.refusal or (BLIND if blind and self.images else "")

    def in_line(self) -> str:
        """Write it on one line, the images after the text."""
        return " ".join([self.text, *self.images]).strip()

    def fenced(self, max_tokens: int, label: str = "document") -> str:
        """Write it between tags that its text cannot contain, cut to a budget of tokens, the images after the text."""
        text = cut(self.text, max_tokens)
        return fence("\n".join([*([text] if text or not self.images else []), *self.images]), label)


class Sight(ImageReader):
    """What a teacher may look at."""

    async def look(
        self, query: QueryBundle, nodes: Sequence[BaseNode], mode: MetadataMode, max_tokens: int
    ) -> tuple[Shown, list[Shown]]:
        """Make a query and nodes ready to be shown; images are opened in a thread.

        :param query: the query.
        :param nodes: the nodes.
        :param mode: which of a node's metadata stands before its text.
        :param max_tokens: the budget of a node's text and metadata.
        :return: the query, and each of the nodes.
        """
        texts = [content(node, mode, max_tokens) for node in nodes]
        media = [media_of(node) for node in nodes]
        pictured = image_of(query) or any(one.images for one in media)
        return await in_thread(self._look, query, texts, media) if pictured else self._look(query, texts, media)

    def _look(self, query: QueryBundle, texts: Sequence[str], media: Sequence[Media]) -> tuple[Shown, list[Shown]]:
        asked = self._shown("query", clean(query.query_str), Media(tuple(filter(None, [image_of(query)]))), True)
        return asked, [self._shown("document", text, one) for text, one in zip(texts, media, strict=True)]

    def _shown(self, label: str, text: str, media: Media, anywhere: bool = False) -> Shown:
        if media.others:
            kinds = " and ".join(media.others)
            return Shown(text, refusal=f"a node holds {kinds}, and teachers judge texts and images only")
        try:
            images = [self.read(source, anywhere) for source in media.images]
        except ImageError as error:
            return Shown(text, refusal=f"the query cannot be shown: {error}" if anywhere else str(error))
        marks = [_mark(label, text, at, image) for at, image in enumerate(images)]
        return Shown(text, dict(zip(marks, map(_block, images), strict=True)))

    async def plain(self, images: Mapping[str, ImageBlock]) -> dict[str, ImageBlock]:
        """Write anew as PNG or JPEG what is something else. :raises ImageError: one cannot be opened."""
        return {mark: await in_thread(self._plainly, image) for mark, image in images.items()}

    def _plainly(self, image: ImageBlock) -> ImageBlock:
        if not can_be_plainer(image):
            return image
        return _block(fitted(b64decode(cast("bytes", image.image)), self.max_image_pixels, anew=True))


def can_be_plainer(image: ImageBlock) -> bool:
    """Whether an image's bytes are here, and neither PNG nor JPEG, which every server that sees can read."""
    return image.image is not None and image.image_mimetype not in ("image/png", "image/jpeg")


def tokens_of(messages: Sequence[ChatMessage]) -> int:
    """Count the tokens of messages, with an estimate for their images."""
    text = sum(count_tokens(message.content or "") for message in messages)
    blocks = (block for message in messages for block in message.blocks)
    return text + sum(image_tokens(block) for block in blocks if isinstance(block, ImageBlock))


def image_tokens(block: ImageBlock) -> int:
    """Estimate the tokens of an image; of one that is elsewhere, by the most that is shown unless the user says so."""
    pixels = pixels_of(b64decode(block.image)) if isinstance(block.image, bytes) else MAX_IMAGE_PIXELS
    return -(-pixels // _PIXELS_PER_TOKEN)


def with_images(messages: Sequence[ChatMessage], images: Mapping[str, ImageBlock]) -> list[ChatMessage]:
    """Put images where their marks are.

    :param messages: messages of text.
    :param images: images by mark. One whose mark a prompt has lost comes last in the last message of the user.
    :return: messages of content blocks.
    """
    if not images:
        return list(messages)
    written = [_with_images(message, images) for message in messages]
    text = "".join(message.content or "" for message in messages)
    lost = [image for mark, image in images.items() if mark not in text]
    if lost:
        last = next((at for at, one in reversed([*enumerate(written)]) if one.role == MessageRole.USER), -1)
        written[last].blocks.extend(lost)
    return written


def _with_images(message: ChatMessage, images: Mapping[str, ImageBlock]) -> ChatMessage:
    blocks: list[Any] = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            parts = re.split(f"({'|'.join(images)})", block.text)
            # Some providers refuse a text of nothing but space.
            blocks += [images.get(part) or TextBlock(text=part) for part in parts if part.strip()]
        else:
            blocks.append(block)
    return ChatMessage(role=message.role, blocks=blocks, additional_kwargs=message.additional_kwargs)


def _mark(label: str, text: str, at: int, image: Picture | str) -> str:
    """Name an image by what it is and by the text it goes with, which therefore cannot contain the name."""
    content = image.encode() if isinstance(image, str) else image.data
    digest = hashlib.sha256(f"{label} {at} {hashlib.sha256(content).hexdigest()} {text}".encode()).hexdigest()
    return f"<image-{digest[:20]}>"


def _block(image: Picture | str) -> ImageBlock:
    if isinstance(image, str):
        return ImageBlock(url=image)
    return ImageBlock(image=image.data, image_mimetype=image.mimetype)
