"""The summary that returned nodes carry in their metadata where it is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llama_index.core.schema import BaseNode, NodeWithScore

from llama_index_refine.refinement import Refinement

GRADE = "refine_grade"
RANK_BEFORE = "refine_rank_before"
PARTS = "refine_parts"


def annotated(refinement: Refinement) -> Refinement:
    """Note on each returned node its grade and where the first search had it.

    The nodes are copies, and both notes are kept out of what LLMs and embedding models are shown.

    :param refinement: what a retriever found.
    :return: the same, its `nodes` with `refine_grade` (in [0, 1], None where it was not graded) and
        `refine_rank_before` (from 1, None where the first search had not returned it) in their metadata.
    """
    grades, ranks = refinement.grade_of, refinement.rank_before
    nodes = [
        NodeWithScore(
            node=_noted(entry.node, {GRADE: grades.get(entry.node_id), RANK_BEFORE: ranks.get(entry.node_id)}),
            score=entry.score,
        )
        for entry in refinement.nodes
    ]
    return replace(refinement, nodes=nodes)


def with_parts(refinement: Refinement) -> Refinement:
    """Note on each returned node which parts of a query it answers, hidden from LLMs.

    :param refinement: what was found for a split query.
    :return: the same, its `nodes` copies with `refine_parts`, the questions that found them, in their metadata.
    """
    found = [(part.query_str, {entry.node_id for entry in part.nodes}) for part in refinement.parts]
    nodes = [
        NodeWithScore(
            node=_noted(entry.node, {PARTS: [text for text, there in found if entry.node_id in there]}),
            score=entry.score,
        )
        for entry in refinement.nodes
    ]
    return replace(refinement, nodes=nodes)


def _noted(node: BaseNode, notes: dict[str, Any]) -> BaseNode:
    changes: dict[str, Any] = {"metadata": {**node.metadata, **notes}}
    for keys in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
        changes[keys] = list(dict.fromkeys([*getattr(node, keys), *notes]))
    return node.model_copy(update=changes)
