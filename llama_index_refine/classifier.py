"""Labels as refined queries."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from numpy.typing import NDArray

from llama_index_refine import storage
from llama_index_refine.classifying.labels import read_labels
from llama_index_refine.classifying.memory import Memory
from llama_index_refine.classifying.scores import Scores, fit_scores
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import points_of
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.refinement import Refinement
from llama_index_refine.retriever import RefinedRetriever
from llama_index_refine.scheduling import Outcome, run

# Documents by which the similarities to the labels are standardised.
SAMPLE = 512
# Vectors fetched in one request.
CHUNK = 256


class RefinedClassifier:
    """Gives texts and nodes one of several labels, each of which is a query refined over a collection.

    A document gets the label to which its similarity, standardised over the collection, is highest. It follows
    scikit-learn's conventions for classifiers; a text is what scikit-learn calls a sample.

    :param retriever: refines the labels, over its collection, by its teacher's grades; and embeds texts. None for a
        classifier that is loaded, which embeds texts with `Settings.embed_model`.
    :param none_of_these: whether a document gets None if having none of the labels is more likely than having the best
        one.
    """

    _estimator_type = "classifier"

    def __init__(self, retriever: RefinedRetriever | None = None, none_of_these: bool = False) -> None:
        self.retriever = retriever
        self.none_of_these = none_of_these

    @property
    def classes_(self) -> NDArray[np.object_]:
        """(C,) the labels, in the order of the columns of `predict_proba`."""
        return np.array(self._fitted().names, dtype=object)

    def fit(self, labels: Sequence[str] | Mapping[str, str], budget: int | None = None) -> RefinedClassifier:
        """Refine a query for each label.

        :param labels: names, or a mapping from name to definition. Definitions are what the teacher grades by.
        :param budget: the most documents to grade for each label, at least 2; None for the retriever's feedback_top_k.
        :return: the classifier.
        :raises ValueError: labels that are duplicates or fewer than two, a budget that is too small, or a retriever
            whose scores are not similarities.
        :raises RuntimeError: no label could be refined or, with the retriever's on_error="raise", one of them could
            not.
        """
        texts = read_labels(labels)
        retriever = copy.copy(self._given())
        # What would hardly change the first few nodes still tells labels apart.
        retriever.early_stop = False
        # A label is one query, and nobody reads what it finds.
        retriever.answerable = retriever._questions = None
        if budget is not None:
            if budget < 2:
                raise ValueError(f"budget must be at least 2 documents for each label, got {budget}")
            retriever.feedback_top_k = budget
        collection = retriever._collection
        if collection.options.multivector is not None:
            raise ValueError(
                "retriever must not have a multivector_query_fn: labels are compared by one vector per text"
            )
        space = run([collection.space()])[0].get()
        if space.sparse is not None:
            raise ValueError(
                "retriever must search a dense vector alone, because labels are compared by one; it also searches "
                f"the sparse {space.sparse!r}"
            )
        wide = QdrantCollection(collection.store, collection.options, SAMPLE)
        outcomes: list[Outcome[Any]] = run([wide.background(), wide.population()])
        sample, population = (outcome.get() for outcome in outcomes)
        if not population:
            raise ValueError(f"retriever searches the collection {collection.store.collection_name!r}, which is empty")
        refinements = retriever.refine_batch(list(texts.values()))
        self._check_taught(dict(zip(texts, refinements, strict=True)))
        sees = retriever._pipeline().teacher.sees()
        self.memory_ = Memory.of(texts, refinements, sample.vectors.dense.numpy(), population, space.metric, sees)
        self._refit()
        return self

    def partial_fit(
        self, nodes: Sequence[str | BaseNode | NodeWithScore], labels: Sequence[str | None]
    ) -> RefinedClassifier:
        """Learn from people's judgements, which count in full, and refine their labels again.

        :param nodes: texts or nodes.
        :param labels: the label of each; None for none of these. A node counts for its own label, and against the one
            that it would have been given instead.
        :return: the classifier.
        :raises ValueError: another number of labels, or one that was not fitted.
        """
        memory = self._fitted()
        if len(nodes) != len(labels):
            raise ValueError(f"labels must be one for each of the {len(nodes)} nodes, got {len(labels)}")
        unknown = sorted({label for label in labels if label is not None and label not in memory.names})
        if unknown:
            raise ValueError(f"labels holds {unknown[0]!r}, which was not fitted; the fitted labels are {memory.names}")
        if not len(nodes):
            return self
        vectors = self._vectors_of(nodes)
        taken = memory.names
        guessed = [taken[at] for at in self.scores_.standard(vectors).argmax(1)]
        for vector, label, guess in zip(vectors, labels, guessed, strict=True):
            if label is not None:
                memory.judge(label, vector, 1.0)
            if guess != label:
                memory.judge(guess, vector, 0.0)
        self._refit()
        return self

    def predict(self, texts: Sequence[str]) -> NDArray[np.object_]:
        """Give each text its label.

        :param texts: the texts.
        :return: (n,) labels; None where none of them fits and `none_of_these` asks for that.
        """
        return self.labels_of(self._probabilities(self._embedded(texts)))

    def predict_nodes(self, nodes: Sequence[str | BaseNode | NodeWithScore]) -> NDArray[np.object_]:
        """Give each node its label.

        :param nodes: nodes, whose vectors are their own, or the collection's, or else made from their text; or texts.
        :return: (n,) labels, as `predict` gives them.
        """
        return self.labels_of(self._probabilities(self._vectors_of(nodes)))

    def predict_proba(self, texts: Sequence[str | BaseNode | NodeWithScore]) -> NDArray[np.float64]:
        """Say how likely each label is.

        :param texts: texts or nodes.
        :return: (n, C) with a column for each of `classes_`. Rows sum to 1, or with `none_of_these` to less; the rest
            is the probability of none.
        """
        return self._probabilities(self._vectors_of(texts))

    def labels_of(self, probabilities: NDArray[np.float64]) -> NDArray[np.object_]:
        """Turn probabilities into labels, if you need both.

        :param probabilities: (n, C) as of `predict_proba`.
        :return: (n,) labels, as `predict` gives them.
        """
        found: NDArray[np.object_] = self.classes_[probabilities.argmax(1)]
        if self.none_of_these:
            found[1 - probabilities.sum(1) > probabilities.max(1, initial=0.0)] = None
        return found

    def score(self, texts: Sequence[str], labels: Sequence[str | None]) -> float:
        """Return the accuracy: the share of texts that get their label."""
        return float(np.mean([found == label for found, label in zip(self.predict(texts), labels, strict=True)]))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return what the classifier was made with."""
        return {"retriever": self.retriever, "none_of_these": self.none_of_these}

    def set_params(self, **params: Any) -> RefinedClassifier:
        """Set what the classifier was made with.

        :raises ValueError: there is no such parameter.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"RefinedClassifier has no parameter {name!r}; it has {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags  # type: ignore[import-untyped]

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=False),
            classifier_tags=ClassifierTags(),
            # A sample is a text, and which texts it is taught with the retriever knows.
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
            no_validation=True,
        )

    def __sklearn_clone__(self) -> RefinedClassifier:
        return type(self)(**self.get_params())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "memory_")

    def save(self, path: str | Path) -> None:
        """Write the classifier into one file, in safetensors' format with JSON in its header.

        The retriever is not in it. Texts of graded documents are not either, but their vectors are.

        :param path: the file, which is replaced.
        :raises OSError: it cannot be written.
        """
        tensors, facts = self._fitted().to_file()
        storage.write(path, "RefinedClassifier", tensors, {**facts, "none_of_these": self.none_of_these})

    @classmethod
    def load(cls, path: str | Path, retriever: RefinedRetriever | None = None) -> RefinedClassifier:
        """Read what `save` wrote.

        :param path: the file.
        :param retriever: embeds texts, and knows the nodes' vectors; None to embed texts with `Settings.embed_model`.
        :return: the classifier.
        :raises OSError: it cannot be read.
        :raises ValueError: the file was not written by `save`.
        """
        tensors, facts = storage.read(path, "RefinedClassifier")
        try:
            classifier = cls(retriever, bool(facts["none_of_these"]))
            classifier.memory_ = Memory.from_file(tensors, facts)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"path {path} is not a file that RefinedClassifier.save wrote: {error}") from error
        classifier._refit()
        return classifier

    def _check_taught(self, refinements: Mapping[str, Refinement]) -> None:
        """See that a teacher graded, at least half of what it was shown for each label."""
        untaught = {
            name: one.reason or f"the teacher left {one.ungraded} documents ungraded: {'; '.join(one.failures)}"
            for name, one in refinements.items()
            if one.reason is not None or one.ungraded > len(one.grades)
        }
        if untaught and (len(untaught) == len(refinements) or self._given().on_error == "raise"):
            name, reason = next(iter(untaught.items()))
            raise RuntimeError(
                f"{len(untaught)} of {len(refinements)} labels could not be refined, {name!r} among them: {reason}"
            )

    def _refit(self) -> None:
        memory = self.memory_
        self.scores_ = fit_scores(memory.lessons(), memory.sample, memory.population, memory.metric)

    def _fitted(self) -> Memory:
        if not hasattr(self, "memory_"):
            try:
                from sklearn.exceptions import NotFittedError  # type: ignore[import-untyped]
            except ImportError:
                NotFittedError = ValueError
            raise NotFittedError("this RefinedClassifier is not fitted: call fit, or load")
        return self.memory_

    def _scores(self) -> Scores:
        self._fitted()
        return self.scores_

    def _given(self) -> RefinedRetriever:
        if not isinstance(self.retriever, RefinedRetriever):
            raise ValueError(f"retriever must be a RefinedRetriever, got {type(self.retriever).__name__}")
        return self.retriever

    def _probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        scores = self._scores()
        return scores.probabilities(scores.standard(vectors), self.none_of_these)

    def _vectors_of(self, items: Sequence[str | BaseNode | NodeWithScore]) -> NDArray[np.float32]:
        """Return (n, d) the vectors of texts and nodes."""
        if isinstance(items, str):
            raise ValueError(f"nodes must be a list of nodes or texts; got the text {items[:40]!r}")
        nodes = [item.node if isinstance(item, NodeWithScore) else item for item in items]
        vectors: dict[int, Any] = {}
        for at, node in enumerate(nodes):
            if isinstance(node, BaseNode) and node.embedding is not None:
                vectors[at] = node.embedding
        others = enumerate(nodes)
        stored = {at: node.node_id for at, node in others if isinstance(node, BaseNode) and at not in vectors}
        known = self._stored(set(stored.values()))
        vectors |= {at: known[node_id] for at, node_id in stored.items() if node_id in known}
        rest = [at for at in range(len(nodes)) if at not in vectors]
        texts = [one if isinstance(one := nodes[at], str) else one.get_content(MetadataMode.EMBED) for at in rest]
        vectors |= zip(rest, self._embedded(texts), strict=True)
        size = self._fitted().sample.shape[1]
        wrong = next((len(one) for one in vectors.values() if len(one) != size), size)
        if wrong != size:
            raise ValueError(
                f"nodes have vectors of {wrong} dimensions, but the labels have {size}: embed both with the same model"
            )
        return np.array([vectors[at] for at in range(len(nodes))], dtype=np.float32).reshape(len(nodes), size)

    def _stored(self, node_ids: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors of those nodes that the retriever's collection has."""
        if self.retriever is None:
            return {}
        collection = self.retriever._collection
        wanted = {node_id: points_of(node_id) for node_id in node_ids}
        points, probe = sorted({*chain(*wanted.values())}, key=str), DenseQuery(self._scores().vectors[0])
        found: dict[Any, NDArray[np.float32]] = {}
        for start in range(0, len(points), CHUNK):
            chunk = points[start : start + CHUNK]
            search = collection.those(probe, chunk, vectors=True, payload=False)
            fetched = run([search])[0].get().with_vectors()
            found |= zip(fetched.ids, (vector.numpy() for vector in fetched.vectors.dense), strict=True)
        return {node_id: found[point] for node_id, points in wanted.items() for point in points if point in found}

    def _embedded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        size = self._fitted().sample.shape[1]
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of texts; got the text {texts[:40]!r}")
        if not len(texts):
            return np.empty((0, size), dtype=np.float32)
        model: BaseEmbedding = Settings.embed_model if self.retriever is None else self.retriever.embed_model
        vectors = np.array(model.get_text_embedding_batch(list(texts)), dtype=np.float32)
        if vectors.shape[1] != size:
            raise ValueError(
                f"texts are embedded in {vectors.shape[1]} dimensions, the labels in {size}: set embed_model to the "
                "model that embedded the collection"
            )
        return vectors
