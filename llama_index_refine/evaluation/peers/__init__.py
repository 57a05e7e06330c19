"""Other ways to use the same grades, for measuring beside them.

`base` is what a peer is given and returns; the peers are in `plain`, `rocchio`, `gradient`, `qdrant`, and `generative`,
which ask an LLM for more than grades. Those of documents that are matrices are in `matrices`, of sparse vectors in
`words`.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_index_refine.evaluation.peers.base import Bill, Evidence, Peer, VectorPeer
from llama_index_refine.evaluation.peers.gradient import Paper, PaperTuned, ReFIT
from llama_index_refine.evaluation.peers.plain import NoFeedback, Rerank
from llama_index_refine.evaluation.peers.qdrant import QdrantFeedback, QdrantFeedbackTuned, QdrantRecommend
from llama_index_refine.evaluation.peers.rocchio import Rocchio

__all__ = ["PEERS", "Bill", "Evidence", "Peer", "Rerank", "VectorPeer", "make_peers"]

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
    )
}
"""The peers that need no LLM of their own, by name."""


def make_peers(names: Sequence[str] | None = None) -> list[Peer]:
    """Make peers by name.

    :param names: some of `PEERS`, None for all. No feedback is always among them, since all are measured against it.
    :raises ValueError: an unknown name.
    """
    chosen = list(PEERS) if names is None else list(names)
    if unknown := [name for name in chosen if name not in PEERS]:
        raise ValueError(f"unknown peers {unknown}; known are {list(PEERS)}")
    return [PEERS[name]() for name in dict.fromkeys([NoFeedback.name, *chosen])]
