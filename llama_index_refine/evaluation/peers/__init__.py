"""Other ways to use the same grades, for measuring beside them.

`base` is what a peer is given and returns; the peers are in `plain`, `rocchio`, `gradient`, `qdrant`, and `generative`,
which ask an LLM for more than grades. Those of documents that are matrices are in `matrices`, of sparse vectors in
`words`.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_index_refine.evaluation.peers.base import Bill, Evidence, Peer, VectorPeer
from llama_index_refine.evaluation.peers.generative import HyDE, LLMReranked
from llama_index_refine.evaluation.peers.gradient import Paper, PaperTuned, ReFIT
from llama_index_refine.evaluation.peers.plain import NoFeedback, Rerank
from llama_index_refine.evaluation.peers.qdrant import QdrantFeedback, QdrantFeedbackTuned, QdrantRecommend
from llama_index_refine.evaluation.peers.rocchio import Rocchio

__all__ = ["PEERS", "Bill", "Evidence", "HyDE", "Peer", "Rerank", "VectorPeer", "choose_peers"]

PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        NoFeedback,
        Rerank,
        Rocchio,
        Paper,
        PaperTuned,
        ReFIT,
        QdrantFeedback,
        QdrantFeedbackTuned,
        QdrantRecommend,
        HyDE,
        LLMReranked,
    )
}
"""The peers, by name."""


def choose_peers(names: Sequence[str] | None = None, llm: bool = False) -> list[str]:
    """Say which peers are measured.

    :param names: some of `PEERS`, None for all that can be. No feedback is always among them, since all are measured
        against it.
    :param llm: whether there is an LLM to ask.
    :return: their names.
    :raises ValueError: an unknown name, or a peer that needs an LLM where there is none.
    """
    able = [name for name, peer in PEERS.items() if llm or not peer.needs_llm]
    chosen = able if names is None else list(names)
    if unknown := [name for name in chosen if name not in PEERS]:
        raise ValueError(f"unknown peers {unknown}; known are {list(PEERS)}")
    if lacking := [name for name in chosen if name not in able]:
        raise ValueError(f"peers {lacking} need an LLM: give llm, on the command line --llm-model")
    return list(dict.fromkeys([NoFeedback.name, *chosen]))
