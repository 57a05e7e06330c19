"""What a refinement did, in words and rows, for whatever shows it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llama_index_refine.images.sources import media_of

if TYPE_CHECKING:
    from llama_index.core.schema import BaseNode

    from llama_index_refine.refinement import Refinement

# Characters that turn the direction of the text after them; in a document they could disguise what stands around it.
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Move:
    """One node's way from the first search to the result.

    :param node: the node.
    :param score: its score where it was found last, None where it has none.
    :param rank: its rank in the result, from 1; None where it is not in it any more.
    :param rank_before: its rank in the first search, from 1; None where that did not return it.
    :param grade: in [0, 1], None where it was not graded.
    """

    node: BaseNode
    score: float | None
    rank: int | None
    rank_before: int | None
    grade: float | None

    @property
    def rise(self) -> int | None:
        """By how many ranks it rose, negative where it fell; None where it is new or gone."""
        return None if self.rank is None or self.rank_before is None else self.rank_before - self.rank

    @property
    def kind(self) -> Literal["gone", "new", "still", "up", "down"]:
        """What became of it."""
        if self.rank is None:
            return "gone"
        if self.rise is None:
            return "new"
        return "still" if self.rise == 0 else "up" if self.rise > 0 else "down"

    @property
    def label(self) -> str:
        """The same in a word or a sign, with the number of ranks."""
        rise = self.rise or 0
        return {"still": "=", "up": f"↑{rise}", "down": f"↓{-rise}", "gone": f"was {self.rank_before}", "new": "new"}[
            self.kind
        ]


def moves(refinement: Refinement) -> list[Move]:
    """Return the moves of the nodes in the result, in its order, and then of those that are gone.

    :param refinement: what a retriever found.
    :return: one move for each node that either search returned.
    """
    grades, before = refinement.grade_of, refinement.rank_before
    ranks = {entry.node_id: rank for rank, entry in enumerate(refinement.nodes, 1)}
    return [
        Move(
            entry.node,
            entry.score,
            ranks.get(entry.node_id),
            before.get(entry.node_id),
            grades.get(entry.node_id),
        )
        for entry in [*refinement.nodes, *refinement.lost]
    ]


def effect(refinement: Refinement) -> str:
    """Say in a sentence what refining did, or why it did nothing."""
    if refinement.reason is not None and not refinement.nodes:
        return f"Nothing returned: {clean(refinement.reason)}."
    if refinement.reason is not None:
        return f"Not refined: {clean(refinement.reason)}. These are the first search's nodes."
    said = (
        f"KL {refinement.kl_before:.3f} → {refinement.kl_after:.3f} nats by {_count(len(refinement.grades), 'grade')}"
    )
    if refinement.rounds:
        said += f" in {_count(refinement.rounds, 'round')}"
    if refinement.saved_grades:
        said += f", {refinement.saved_grades} saved"
    if refinement.ungraded:
        said += f", {refinement.ungraded} without a grade"
    if refinement.nodes:
        said += f"; {len(refinement.gained)} of {_count(len(refinement.nodes), 'node')} new"
    return said + "."


def cost(refinement: Refinement) -> str:
    """Say in a sentence what it cost: calls, tokens and time."""
    parts = []
    if refinement.llm_calls or refinement.cached_grades:
        parts.append(_count(refinement.llm_calls, "LLM call"))
    if refinement.prompt_tokens or refinement.completion_tokens:
        parts.append(f"{refinement.prompt_tokens:,} tokens in, {refinement.completion_tokens:,} out")
    if refinement.cached_grades:
        parts.append(f"{_count(refinement.cached_grades, 'grade')} from the cache")
    timings = refinement.timings or {"refine": refinement.seconds}
    longest = sorted(timings.items(), key=lambda item: -item[1])
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in longest[:4])
    return "; ".join([*parts, f"{duration(sum(timings.values()))}: {stages}"]) + "."


def duration(seconds: float) -> str:
    """Write a time so that two digits tell."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def excerpt(node: BaseNode, width: int) -> str:
    """Return the beginning of a node's text on one line, else its image's URL, else its id.

    :param node: the node.
    :param width: the most characters.
    :return: the text without control characters, not escaped for anything.
    """
    return clean(node.get_content(), width) or clean(_url(node) or node.node_id, width)


def _url(node: BaseNode) -> str | None:
    return next((source.url for source in media_of(node).images if source.url), None)


def clean(text: str, width: int | None = None) -> str:
    """Put hostile text on one line: no control characters, no change of direction.

    :param text: any text.
    :param width: the most characters, None for all.
    :return: the text; where it was cut it ends in an ellipsis.
    """
    if width is not None:
        # Collapsing a whole document to show a line of it would be a waste.
        text = text[: 8 * width]
    kept = (" " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text)
    text = re.sub(r"\s+", " ", "".join(char for char in kept if char not in _TURNING)).strip()
    return text if width is None or len(text) <= width else text[: width - 1].rstrip() + "…"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
