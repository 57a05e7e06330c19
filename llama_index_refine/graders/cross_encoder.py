"""A cross-encoder: a small model that reads query and document together."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.base import BaseGrader, Grades, at_least
from llama_index_refine.images.sources import image_of, media_of
from llama_index_refine.locks import Lock

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

DEFAULT_MODEL = "cross-encoder/ms-marco-MiniLM-L6-v2"


class CrossEncoderGrader(BaseGrader):
    """Grades with a sentence-transformers `CrossEncoder`, in batches. No LLM, no calls.

    It reads texts: images without one get no grade.

    A model with one output is read as a logit and graded by 1 / (1 + exp(-logit / temperature)); one with two outputs
    by the softmax of the second.

    :param model: a model's name or folder, loaded at the first use, or a `CrossEncoder`.
    :param batch_size: pairs in one forward pass, at least 1.
    :param device: where to load the model: "cpu", "cuda", ...; None for what sentence-transformers picks.
    :param temperature: divides the logits, above 0; higher makes milder grades.
    :param metadata_mode: which of a node's metadata the model reads before its text.
    :raises ImportError: sentence-transformers is not installed.
    :raises ValueError: an argument out of its range.
    """

    def __init__(
        self,
        model: str | CrossEncoder = DEFAULT_MODEL,
        batch_size: int = 32,
        device: str | None = None,
        temperature: float = 1.0,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
    ) -> None:
        if find_spec("sentence_transformers") is None:
            extra = "llama-index-refine[sentence-transformers]"
            raise ImportError(f'CrossEncoderGrader needs sentence-transformers: pip install "{extra}"')
        at_least(1, batch_size=batch_size)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; got {temperature}")
        self._name = model if isinstance(model, str) else str(getattr(model.config, "_name_or_path", ""))
        self._model = None if isinstance(model, str) else model
        self._batch_size = batch_size
        self._device = device
        self._temperature = temperature
        self._metadata_mode = metadata_mode
        self._lock = Lock()

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.grade`.

        :raises ValueError: the model has more than two outputs.
        """
        places = [at for at, node in enumerate(nodes) if _has_words(query, node)]
        if len(places) < len(nodes):
            current_account().note("a cross-encoder reads texts, so images without one get no grade")
        if not places:
            return Grades([None] * len(nodes))
        # Fast tokenizers must not be used by two threads at once.
        with self._lock:
            model = self._loaded()
            pairs = [(query.query_str, self._text(model, query.query_str, nodes[at])) for at in places]
            raw: dict[str, Any] = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
            logits = model.predict(pairs, batch_size=self._batch_size, **raw)
        grades = dict(zip(places, _probability(np.asarray(logits, dtype=np.float64), self._temperature), strict=True))
        return Grades(None if np.isnan(grades.get(at, np.nan)) else float(grades[at]) for at in range(len(nodes)))

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`. A model without a name is told by itself; batches and device decide nothing."""
        return [self._name or id(self._model), self._temperature, self._metadata_mode.value]

    def _text(self, model: CrossEncoder, query: str, node: BaseNode) -> str:
        """Bring the text forward where the metadata before it would push it out of what the model reads."""
        whole = node.get_content(self._metadata_mode)
        metadata = node.get_metadata_str(self._metadata_mode).strip()
        # `max_length` before sentence-transformers 5.
        longest = getattr(model, "max_seq_length" if hasattr(model, "max_seq_length") else "max_length", None)
        tokenizer = getattr(model, "tokenizer", None)
        if not metadata or longest is None or tokenizer is None:
            return whole
        read = tokenizer(query, whole, truncation=False, verbose=False)["input_ids"]
        return whole if len(read) <= longest else f"{node.get_content(MetadataMode.NONE)}\n\n{metadata}"

    def _loaded(self) -> CrossEncoder:
        if self._model is None:
            from sentence_transformers import CrossEncoder

            self._model = CrossEncoder(self._name, device=self._device)
        return self._model


def _has_words(query: QueryBundle, node: BaseNode) -> bool:
    """Whether there is something to read on both sides, where there is an image on one."""
    if image_of(query) and not query.query_str.strip():
        return False
    media = media_of(node)
    return bool(node.get_content(MetadataMode.NONE).strip()) or not (media.images or media.others)


def _probability(logits: np.ndarray, temperature: float) -> np.ndarray:
    if logits.ndim == 2 and logits.shape[1] == 2:
        logits = logits[:, 1] - logits[:, 0]
    elif logits.ndim == 2 and logits.shape[1] > 2:
        raise ValueError(f"model has {logits.shape[1]} outputs; a cross-encoder for ranking has one, or two classes")
    return np.asarray(1 / (1 + np.exp(np.clip(-logits.reshape(-1) / temperature, -500, 500))))
