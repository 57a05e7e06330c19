"""One id, and one text, in its many spellings."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from uuid import UUID

_HYPHENATED = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# The forms that Qdrant reads: with hyphens or without, as a URN, in braces, in either case.
_UUID = re.compile(rf"[0-9a-f]{{32}}|(?:urn:uuid:)?{_HYPHENATED}|\{{{_HYPHENATED}\}}", re.IGNORECASE)


def same_id(node_id: str | int | UUID) -> str:
    """Return what all spellings of an id have in common.

    Qdrant writes a UUID with hyphens and in lower case, however it was given, so that a node may come back under an id
    that is spelled otherwise than the one it was written with.

    :param node_id: a node's id, or its point's.
    :return: a UUID as Qdrant writes it; any other id as it is, as text.
    """
    text = str(node_id)
    return str(UUID(text)) if _UUID.fullmatch(text) else text


def is_uuid(node_id: str) -> bool:
    """Say whether Qdrant reads an id as a UUID.

    :param node_id: a node's id.
    :return: whether it does.
    """
    return _UUID.fullmatch(node_id) is not None


def key_of(*parts: str) -> str:
    """Return a key of fixed length for texts of any length: one hexadecimal hash of all of them."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def same_text(text: str) -> str:
    """Return what all spellings of a text have in common, for wherever a text is a key.

    :param text: a query, or another text that people write.
    :return: the text without regard to case and spacing, and to how Unicode composes its accents.
    """
    composed = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", composed).split())
