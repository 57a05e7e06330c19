"""Labels as refined queries, over a real collection."""

import json

import numpy as np
import pytest
from llama_index.core import Settings
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.question_gen.types import BaseQuestionGenerator
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters
from qdrant_client import QdrantClient, models
from safetensors.numpy import save_file

from llama_index_refine import RefinedClassifier, RefinedRetriever
from tests.planted import SIZE, TOPICS, AnswerGrader, Planted, TopicGrader, unit

PLANTED = Planted()
LABELS = [f"topic {topic}" for topic in range(TOPICS)]


class PlantedEmbedding(MockEmbedding):
    """Embeds the label of a topic as its query, and the text of a document as its vector."""

    def _get_query_embedding(self, query):
        return PLANTED.queries[int(query.split()[-1])].tolist()

    def _get_text_embedding(self, text):
        return PLANTED.vectors[int(text.split()[1])].tolist()

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)


@pytest.fixture(scope="module")
def retriever():
    return RefinedRetriever(PLANTED.store(), PlantedEmbedding(embed_dim=SIZE), TopicGrader(), feedback_top_k=12)


@pytest.fixture(scope="module")
def fitted(retriever):
    return RefinedClassifier(retriever).fit(LABELS)


def truth():
    return np.array([f"topic {label}" for label in PLANTED.labels], dtype=object)


def nodes(embedded=True):
    made = PLANTED.nodes()
    return made if embedded else [node.model_copy(update={"embedding": None}) for node in made]


def test_a_refined_label_tells_more_than_its_name(fitted):
    named = (PLANTED.vectors @ PLANTED.queries.T).argmax(1) == PLANTED.labels
    refined = fitted.predict_nodes(nodes()) == truth()
    assert refined.mean() > named.mean() + 0.02
    assert refined.mean() > 0.9


def test_texts_nodes_and_points_of_the_collection_get_the_same(fitted):
    texts = [node.get_content() for node in nodes()[:50]]
    wanted = fitted.predict(texts).tolist()
    bare = nodes(embedded=False)[:50]
    assert fitted.predict_nodes(nodes()[:50]).tolist() == wanted
    assert fitted.predict_nodes(bare).tolist() == wanted
    assert fitted.predict_nodes([NodeWithScore(node=node) for node in bare]).tolist() == wanted
    unknown = TextNode(id_="not in the collection", text="document 3 on topic 0")
    assert fitted.predict_nodes([unknown, texts[0]]).tolist() == [wanted[3], wanted[0]]
    assert fitted.predict([]).shape == (0,)
    assert fitted.predict_proba([]).shape == (0, TOPICS)


def test_the_probabilities_are_those_of_the_labels(fitted):
    proba = fitted.predict_proba(nodes())
    assert proba.sum(1) == pytest.approx(1)
    assert (fitted.classes_[proba.argmax(1)] == fitted.predict_nodes(nodes())).all()
    right = (fitted.classes_[proba.argmax(1)] == truth()).mean()
    assert proba.max(1).mean() == pytest.approx(right, abs=0.15)


def test_none_of_these_where_it_is_asked_for(retriever):
    some = RefinedClassifier(retriever, none_of_these=True).fit(LABELS[:5])
    found = some.predict_nodes(nodes())
    left = PLANTED.labels >= 5
    none = np.array([label is None for label in found])
    assert none[left].mean() > 0.8
    assert none[~left].mean() < 0.4
    proba = some.predict_proba(nodes())
    assert (proba.sum(1) <= 1 + 1e-9).all()
    assert proba[left].sum(1).mean() < proba[~left].sum(1).mean()
    assert list(some.labels_of(proba)) == list(found)
    never = RefinedClassifier(retriever).fit(LABELS[:5])
    assert not any(label is None for label in never.predict_nodes(nodes()))


def test_definitions_are_what_is_searched_for(retriever):
    classifier = RefinedClassifier(retriever).fit({"first": "topic 0", "second": "topic 1"})
    assert classifier.classes_.tolist() == ["first", "second"]
    assert classifier.predict_nodes(nodes()[:2]).tolist() == ["first", "first"]


def test_a_label_is_taught_whatever_its_nodes_may_answer_and_is_never_split():
    class Splitting(BaseQuestionGenerator):
        def _get_prompts(self):
            return {}

        def _update_prompts(self, prompts):
            pass

        def generate(self, tools, query):
            raise AssertionError("a label was split")

        async def agenerate(self, tools, query):
            return self.generate(tools, query)

    grader = AnswerGrader(lambda nodes: [0.02 * (at % 3) for at in range(len(nodes))])
    made = RefinedRetriever(
        PLANTED.store(),
        PlantedEmbedding(embed_dim=SIZE),
        grader,
        answerable=1.0,
        decompose=Splitting(),
        on_error="raise",
    )
    assert len(RefinedClassifier(made).fit(LABELS).predict(["document 3 on topic 0"])) == 1
    assert made.answerable == 1.0


def test_the_budget_is_kept_for_each_label():
    grader = TopicGrader()
    one = RefinedRetriever(PLANTED.store(), PlantedEmbedding(embed_dim=SIZE), grader, feedback_top_k=12)
    RefinedClassifier(one).fit(LABELS[:2], budget=6)
    assert sum(map(len, grader.shown)) == 12
    assert one.feedback_top_k == 12


def test_people_are_heard(retriever):
    classifier = RefinedClassifier(retriever).fit(LABELS, budget=2)
    before = classifier.score([node.get_content() for node in nodes()], truth())
    rows = [row for topic in range(TOPICS) for row in range(40 * topic, 40 * topic + 12)]
    classifier.partial_fit([nodes()[row] for row in rows], [truth()[row] for row in rows])
    others = [row for row in range(len(truth())) if row not in rows]
    after = (classifier.predict_nodes([nodes()[row] for row in others]) == truth()[others]).mean()
    assert after >= before
    moved = nodes()[0]
    for _ in range(4):
        classifier.partial_fit([moved], ["topic 3"])
    judged = classifier.memory_.labels["topic 3"]
    assert (np.isclose(judged.documents, PLANTED.vectors[0], atol=1e-6).all(1)).sum() == 1
    classifier.partial_fit([], [])


def test_none_is_a_judgement_too(retriever):
    classifier = RefinedClassifier(retriever).fit(LABELS[:3])
    stranger = nodes()[-1]
    (guess,) = classifier.predict_nodes([stranger])
    classifier.partial_fit([stranger], [None])
    label = classifier.memory_.labels[guess]
    assert label.grades[-1] == 0
    assert np.allclose(label.documents[-1], stranger.embedding)


def test_a_file_brings_it_back(fitted, retriever, tmp_path, monkeypatch):
    path = tmp_path / "labels.safetensors"
    fitted.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.safetensors"]
    for loaded in (RefinedClassifier.load(path), RefinedClassifier.load(path, retriever)):
        assert loaded.predict_proba(nodes()) == pytest.approx(fitted.predict_proba(nodes()), abs=1e-9)
        assert loaded.classes_.tolist() == LABELS
    monkeypatch.setattr(Settings, "_embed_model", PlantedEmbedding(embed_dim=SIZE))
    loaded = RefinedClassifier.load(path)
    assert loaded.predict(["document 7 on topic 0"]).tolist() == ["topic 0"]
    loaded.partial_fit([nodes()[0]], ["topic 0"])
    loaded.save(path)
    again = RefinedClassifier.load(path)
    assert again.predict_proba(nodes()) == pytest.approx(loaded.predict_proba(nodes()), abs=1e-9)


def test_other_files_are_refused(fitted, tmp_path):
    path = tmp_path / "f.safetensors"
    fitted.save(path)
    whole = path.read_bytes()
    for content in (b"", b"no tensors", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a file that RefinedClassifier"):
            RefinedClassifier.load(path)
    save_file({"vectors": np.zeros((2, 3), dtype=np.float32)}, path)
    with pytest.raises(ValueError, match="not a file that RefinedClassifier"):
        RefinedClassifier.load(path)
    facts = {
        "labels": [{"name": "a", "text": "a", "graded": 3}],
        "population": 5,
        "metric": "cosine",
        "none_of_these": 0,
    }
    tensors, _ = fitted.memory_.to_file()
    for bad in ({}, {"sample": np.full((2, SIZE), np.nan, dtype=np.float32)}):
        save_file({**tensors, **bad}, path, {"llama_index_refine.classifier": json.dumps(facts)})
        with pytest.raises(ValueError, match="not a file that RefinedClassifier"):
            RefinedClassifier.load(path)
    with pytest.raises(FileNotFoundError):
        RefinedClassifier.load(tmp_path / "missing")


def test_scikit_learn_takes_it_for_a_classifier(retriever):
    base = pytest.importorskip("sklearn.base")
    classifier = RefinedClassifier(retriever, none_of_these=True)
    copied = base.clone(classifier)
    assert copied is not classifier
    assert copied.get_params() == {"retriever": retriever, "none_of_these": True}
    assert copied.set_params(none_of_these=False) is copied
    assert not copied.none_of_these
    with pytest.raises(ValueError, match="no parameter 'depth'"):
        copied.set_params(depth=3)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "a"], "labels holds duplicates: 'a' twice"),
        (["top up", "Top_up"], "labels holds duplicates: 'top up' and 'Top_up'"),
        (["a"], "labels must be at least 2"),
        ([], "labels must be at least 2"),
        (["a", " "], "labels must be texts that are not blank"),
        (["a", 3], "labels must be texts that are not blank"),
        ("ab", "labels must be a list of names"),
        ({"a": "one", "b": 2}, "labels must map names to texts"),
    ],
)
def test_bad_labels_are_refused_by_name(retriever, labels, said):
    with pytest.raises(ValueError, match=said):
        RefinedClassifier(retriever).fit(labels)


def test_other_bad_input_is_refused_by_name(retriever, fitted):
    with pytest.raises(ValueError, match="budget must be at least 2"):
        RefinedClassifier(retriever).fit(LABELS, budget=1)
    with pytest.raises(ValueError, match="retriever must be a RefinedRetriever"):
        RefinedClassifier().fit(LABELS)
    with pytest.raises(ValueError, match="not fitted"):
        RefinedClassifier(retriever).predict(["a text"])
    with pytest.raises(ValueError, match="texts must be a list"):
        fitted.predict("a text")
    with pytest.raises(ValueError, match="labels must be one for each"):
        fitted.partial_fit(nodes()[:2], ["topic 0"])
    with pytest.raises(ValueError, match="which was not fitted"):
        fitted.partial_fit(nodes()[:1], ["topic 99"])
    with pytest.raises(ValueError, match="dimensions"):
        fitted.predict_nodes([TextNode(text="x", embedding=[1.0, 2.0])])
    client = QdrantClient(":memory:")
    client.create_collection("empty", models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    empty = RefinedRetriever.from_collection(client, "empty", text_key="text", grader=TopicGrader())
    with pytest.raises(ValueError, match="retriever searches the collection 'empty', which is empty"):
        RefinedClassifier(empty).fit(LABELS)


@pytest.mark.parametrize("metric", ["dot", "euclid"])
def test_other_distances(metric):
    client = QdrantClient(":memory:")
    distance = {"dot": models.Distance.DOT, "euclid": models.Distance.EUCLID}[metric]
    client.create_collection("c", models.VectorParams(size=SIZE, distance=distance))
    rows = unit(PLANTED.vectors) * 3
    client.upsert(
        "c",
        [
            models.PointStruct(id=at, vector=row.tolist(), payload={"text": f"document {at}", "topic": int(label)})
            for at, (row, label) in enumerate(zip(rows, PLANTED.labels, strict=True))
        ],
    )
    one = RefinedRetriever.from_collection(
        client, "c", text_key="text", embed_model=PlantedEmbedding(embed_dim=SIZE), grader=TopicGrader()
    )
    classifier = RefinedClassifier(one).fit(LABELS)
    found = classifier.predict_nodes([TextNode(text="x", embedding=row.tolist()) for row in rows])
    assert (found == truth()).mean() > 0.85


def test_a_node_has_one_label_wherever_it_stands(fitted):
    some = nodes(embedded=False)[:4]
    once = fitted.predict_proba(some)
    spelled = [node.model_copy(update={"id_": node.node_id.upper()}) for node in some]
    assert fitted.predict_proba([*some, *some]) == pytest.approx(np.concatenate([once, once]))
    assert fitted.predict_proba([*some, *spelled]) == pytest.approx(np.concatenate([once, once]))


class Silent(TopicGrader):
    """Answers for some topics only."""

    def __init__(self, topics):
        super().__init__()
        self.topics = topics

    def grade(self, query, nodes):
        known = int(query.query_str.split()[-1]) in self.topics
        return super().grade(query, nodes) if known else [None] * len(nodes)


def test_what_nobody_taught_is_not_fitted():
    def classifier(topics, **kwargs):
        embed_model = PlantedEmbedding(embed_dim=SIZE)
        return RefinedClassifier(RefinedRetriever(PLANTED.store(), embed_model, Silent(topics), **kwargs))

    nobody, some = classifier(()), classifier((0, 1), on_error="raise")
    with pytest.raises(RuntimeError, match="8 of 8 labels could not be refined, 'topic 0' among them: the teacher"):
        nobody.fit(LABELS)
    with pytest.raises(RuntimeError, match="6 of 8 labels could not be refined, 'topic 2' among them"):
        some.fit(LABELS)
    assert not hasattr(nobody, "memory_")
    assert not hasattr(some, "memory_")
    assert classifier((0, 1)).fit(LABELS).classes_.tolist() == LABELS


# What checks of scikit-learn that make up no data look at. The others call `fit` with rows of numbers.
CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_estimator_sparse_tag",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_do_not_raise_errors_in_init_or_set_param",
    "check_valid_tag_types",
]


@pytest.mark.parametrize("name", CHECKS)
def test_scikit_learns_own_checks(retriever, name):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    check = getattr(checks, name, None)
    if check is None:
        pytest.skip("another version of scikit-learn")
    check("RefinedClassifier", RefinedClassifier(retriever))


def test_scikit_learns_tools_take_it(retriever, fitted):
    base = pytest.importorskip("sklearn.base")
    estimator_checks = pytest.importorskip("sklearn.utils.estimator_checks")
    from sklearn.exceptions import NotFittedError
    from sklearn.metrics import ConfusionMatrixDisplay, get_scorer
    from sklearn.pipeline import make_pipeline

    texts, labels = [node.get_content() for node in nodes()[::20]], truth()[::20].tolist()
    estimator_checks.check_estimator(RefinedClassifier(retriever))
    assert base.is_classifier(fitted)
    assert make_pipeline("passthrough", fitted).predict(texts).tolist() == fitted.predict(texts).tolist()
    assert get_scorer("accuracy")(fitted, texts, labels) == fitted.score(texts, labels)
    assert get_scorer("neg_log_loss")(fitted, texts, labels) <= 0
    shown = ConfusionMatrixDisplay.from_estimator(fitted, texts, labels)
    assert shown.confusion_matrix.sum() == len(texts)
    with pytest.raises(NotFittedError):
        RefinedClassifier(retriever).predict(texts)


def test_one_text_is_not_taken_letter_by_letter(fitted):
    for classify in (fitted.predict_nodes, fitted.predict_proba):
        with pytest.raises(ValueError, match="nodes must be a list of nodes or texts; got the text 'document 3"):
            classify("document 3 on topic 0")


def test_behind_a_filter_the_collection_is_what_the_filter_admits():
    halves = MetadataFilters(filters=[ExactMatchFilter(key="half", value=1)])
    retriever = RefinedRetriever(PLANTED.store(), PlantedEmbedding(embed_dim=SIZE), TopicGrader(), filters=halves)
    assert RefinedClassifier(retriever).fit(LABELS).memory_.population == len(PLANTED.labels) / 2


class LongEmbedding(PlantedEmbedding):
    """As long as it likes: Qdrant makes vectors of length 1 of what it compares by cosine."""

    def _get_text_embedding(self, text):
        return (7 * PLANTED.vectors[int(text.split()[1])]).tolist()


def test_a_judgement_replaces_the_teacher_s_whatever_the_length_of_the_embedding():
    one = RefinedRetriever(PLANTED.store(), LongEmbedding(embed_dim=SIZE), TopicGrader(), feedback_top_k=12)
    classifier = RefinedClassifier(one).fit(LABELS)
    label = classifier.memory_.labels["topic 3"]
    count, graded = len(label.grades), int(np.flatnonzero(label.grades == 1)[0])
    row = int((PLANTED.vectors @ label.documents[graded]).argmax())
    classifier.partial_fit([nodes()[row].get_content()], ["topic 3"])
    assert len(label.grades) == count
    assert label.trust[-1] == 1
