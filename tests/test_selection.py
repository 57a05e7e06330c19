"""What belongs to a query, in a real collection."""

import asyncio

import numpy as np
import pytest
import torch
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters
from qdrant_client import QdrantClient, models

from llama_index_refine import QueryWithExamples, RefinedRetriever, Selection
from llama_index_refine.graders.base import GraderError
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.refining.trust import Reliability
from llama_index_refine.retrieval import evidence
from llama_index_refine.similarity import similarity, similarity_of_score
from tests.places import SIZE as PLACE_SIZE
from tests.places import LabelGrader, open_place, points, question
from tests.planted import PER_TOPIC, SIZE, TOPICS, AnswerGrader, Planted, TopicGrader, point_id

PLANTED = Planted()


@pytest.fixture(scope="module")
def store():
    return PLANTED.store()


def retriever(store, grader=None, **kwargs):
    return RefinedRetriever(
        store, MockEmbedding(embed_dim=SIZE), grader or TopicGrader(), **{"feedback_top_k": 12, **kwargs}
    )


def topics(nodes):
    return [entry.node.metadata["topic"] for entry in nodes]


def f1(selection, topic, relevant=PER_TOPIC):
    hits = sum(found == topic for found in topics(selection.nodes))
    return 2 * hits / (len(selection.nodes) + relevant)


def test_returns_what_belongs_and_says_how_sure_it_is(store):
    grader = TopicGrader()
    found = retriever(store, grader).select_batch([PLANTED.query(topic) for topic in range(TOPICS)])
    assert np.mean([f1(selection, topic) for topic, selection in enumerate(found)]) > 0.85
    for topic, selection in enumerate(found):
        scores = [entry.score for entry in selection.nodes]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        for interval in (selection.precision, selection.recall):
            assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
        assert PER_TOPIC / 2 < selection.expected_total < 2 * PER_TOPIC
        assert selection.graded == len(selection.refinement.graded_nodes) + 12
        assert not selection.certified
        assert "no target" in selection.reason
        truth = np.mean([found == topic for found in topics(selection.nodes)])
        assert selection.precision.low - 0.1 <= truth <= selection.precision.high + 0.1
    assert "nodes of about" in repr(found[0])


def test_selects_the_same_however_many_nodes_would_be_retrieved(store):
    """The grades go where the whole ranking needs them, and not to the first that `retrieve` would return."""
    for topic in range(4):
        few, many = (
            retriever(store, trust=1.0, similarity_top_k=top_k).select(PLANTED.query(topic)) for top_k in (5, 40)
        )
        graded = [{entry.node_id for entry in selection.refinement.graded_nodes} for selection in (few, many)]
        assert graded[0] == graded[1]
        assert [entry.node_id for entry in few.nodes] == [entry.node_id for entry in many.nodes]
        assert len(few.refinement.nodes_before) == 5


def test_the_probabilities_are_those_of_being_relevant(store):
    found = retriever(store).select_batch([PLANTED.query(topic) for topic in range(TOPICS)], recall=0.98, budget=20)
    said = np.array([entry.score for selection in found for entry in selection.nodes])
    true = np.array([entry == topic for topic, selection in enumerate(found) for entry in topics(selection.nodes)])
    assert said.mean() == pytest.approx(true.mean(), abs=0.1)
    assert true[said < 0.3].mean() < 0.3
    assert true[said > 0.7].mean() > 0.8


def test_the_number_that_is_usually_relevant_is_learnt(store):
    record = Reliability()
    practised = retriever(store, trust=record)
    practised.select_batch([PLANTED.query(topic) for topic in range(1, TOPICS)])
    first, later = (one.select(PLANTED.query(0), budget=12) for one in (retriever(store), practised))
    near = [abs(np.log(selection.expected_total / PER_TOPIC)) for selection in (first, later)]
    assert near[1] < near[0]
    assert later.recall.high - later.recall.low < first.recall.high - first.recall.low
    before = record.abundance.counts.sum()
    retriever(store, trust=record, score="probability").retrieve(PLANTED.query(0))
    assert before < record.abundance.counts.sum() <= before + 1


def test_four_ways_to_call_it_find_the_same(store):
    async def asynchronous():
        return await one.aselect(PLANTED.query(2)), await one.aselect_batch([PLANTED.query(2), PLANTED.query(3)])

    one = retriever(store, trust=1.0)
    first, many = one.select(PLANTED.query(2)), one.select_batch([PLANTED.query(2), PLANTED.query(3)], batch_size=1)
    alone, side_by_side = asyncio.run(asynchronous())
    ids = [[entry.node_id for entry in selection.nodes] for selection in (first, many[0], alone, side_by_side[0])]
    assert ids[0] == ids[1] == ids[2] == ids[3]
    assert len(many) == len(side_by_side) == 2
    assert first.refinement.timings["page"] > 0


@pytest.mark.parametrize("distance", [models.Distance.COSINE, models.Distance.DOT, models.Distance.EUCLID])
def test_selects_wherever_the_collection_is(place, distance):
    if place.kind not in ("memory", "edge") and distance != models.Distance.COSINE:
        pytest.skip("how a distance is read does not depend on the wire")
    name = place.create(models.VectorParams(size=PLACE_SIZE, distance=distance))
    place.write(name, points())
    found = RefinedRetriever.from_collection(
        place.client, name, text_key="meta.abstract", grader=LabelGrader(), feedback_top_k=12
    )
    selection = found.select(question(1))
    hits = sum(entry.node.metadata["topic"] == "1" for entry in selection.nodes)
    assert 2 * hits / (len(selection.nodes) + 40) > 0.6
    # The vector and the threshold, asked for by themselves, find what was selected without having been graded.
    asked = models.QueryRequest(query=selection.vector.tolist(), score_threshold=selection.threshold, limit=200)
    (answer,) = place.client.query_batch_points(name, [asked])
    graded = {entry.node_id for entry in selection.refinement.graded_nodes}
    alone = {str(point.id) for point in answer.points}
    selected = {entry.node_id for entry in selection.nodes}
    assert len(alone ^ selected) <= selection.graded
    assert graded
    # And so does the selection, among documents that come with their vectors.
    new = [TextNode(id_=str(point.id), embedding=point.vector) for point in points()]
    assert {entry.node_id for entry in selection.match(new)} == alone


def test_a_selection_is_a_standing_question(store, tmp_path):
    """It says which new documents belong as well as it knew the old ones, also when it comes from a file."""
    new, grader = Planted(fresh=1), TopicGrader()
    selection = retriever(store, grader).select(PLANTED.query(3))
    asked = len(grader.shown)
    selection.save(tmp_path / "standing.safetensors")
    loaded = Selection.load(tmp_path / "standing.safetensors", MockEmbedding(embed_dim=SIZE))
    found = selection.match(new.nodes())
    again = loaded.match([NodeWithScore(node=node) for node in new.nodes()])
    assert [(one.node_id, one.score) for one in again] == [(one.node_id, one.score) for one in found]
    right, known = (np.mean(np.array(topics(nodes)) == 3) for nodes in (found, selection.nodes))
    assert right > known - 0.1
    assert len(found) > PER_TOPIC / 2
    assert len(grader.shown) == asked
    assert repr(loaded) == repr(selection)
    assert (loaded.threshold, loaded.precision, loaded.cuts) == (
        selection.threshold,
        selection.precision,
        selection.cuts,
    )
    assert loaded.plot() is not None
    # A text is embedded; this model's one vector lies nowhere near.
    assert loaded.match(["a text"]) == []


def test_new_documents_are_as_likely_relevant_as_is_said(store):
    found = {topic: retriever(store).select(PLANTED.query(topic)).match(Planted(fresh=1).nodes()) for topic in range(6)}
    right = np.mean([entry == topic for topic, nodes in found.items() for entry in topics(nodes)])
    said = np.mean([entry.score for nodes in found.values() for entry in nodes])
    assert said == pytest.approx(right, abs=0.15)


def test_what_a_selection_cannot_match_is_told(store, tmp_path):
    selection = retriever(store).select(PLANTED.query(3))
    with pytest.raises(ValueError, match="nodes have vectors of 3 dimensions"):
        selection.match([TextNode(embedding=[1.0, 2.0, 3.0])])
    with pytest.raises(ValueError, match="nodes must be a list"):
        selection.match("a text")
    nothing = retriever(store, AnswerGrader(lambda nodes: [None] * len(nodes))).select(PLANTED.query(3))
    with pytest.raises(ValueError, match="no threshold to match by"):
        nothing.match(PLANTED.nodes())
    nothing.save(tmp_path / "nothing.safetensors")
    assert np.isnan(Selection.load(tmp_path / "nothing.safetensors").threshold)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"is not a file that Selection.save wrote"):
        Selection.load(broken)


@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid"])
def test_whole_numbers_are_matched_as_they_are_selected(distance):
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=SIZE, distance=models.Distance(distance), datatype=models.Datatype.UINT8)
    client.create_collection("c", params)
    rows = (PLANTED.vectors * 300 + 100).round().clip(0, 255)
    client.upsert(
        "c",
        [
            models.PointStruct(id=at, vector=row.tolist(), payload={"text": "a", "topic": int(topic)})
            for at, (row, topic) in enumerate(zip(rows, PLANTED.labels, strict=True))
        ],
    )
    grader = TopicGrader()
    made = RefinedRetriever.from_collection(client, "c", "text", grader=grader, trust=1.0)
    query = QueryBundle("topic 0", embedding=(PLANTED.queries[0] * 300 + 100).clip(0, 255).tolist())
    selection = made.select(query)
    assert 0 <= selection.vector.min() <= selection.vector.max() <= 255
    graded = {node_id for shown in grader.shown for node_id in shown}
    every = [TextNode(id_=str(at), text="a", embedding=row.tolist()) for at, row in enumerate(rows)]
    matched = {entry.node_id for entry in selection.match(every)}
    assert {entry.node_id for entry in selection.nodes} - graded == matched - graded
    # Graded documents stand beside the others by what Qdrant compares.
    found = made.refine(query)
    assert 0 <= found.vector.min() <= found.vector.max() <= 255
    scores = {str(point.id): point.score for point in client.query_points("c", found.vector.tolist(), limit=400).points}
    own = similarity(torch.tensor(found.vector), torch.tensor(found.documents), found.metric)
    said = similarity_of_score(torch.tensor([scores[entry.node_id] for entry in found.graded_nodes]), found.metric)
    assert own.numpy() == pytest.approx(said.numpy(), rel=1e-3)


def test_selects_on_disk(tmp_path):
    with open_place("disk", tmp_path, ("", 0)) as place:
        name = place.create(models.VectorParams(size=PLACE_SIZE, distance=models.Distance.COSINE))
        place.write(name, points())
        one = RefinedRetriever.from_collection(place.client, name, text_key="meta.abstract", grader=LabelGrader())
        assert len(one.select(question(1)).nodes) > 20


def test_pages_fit_together(store, monkeypatch):
    one = retriever(store, trust=1.0)
    whole = one.select(PLANTED.query(1))
    monkeypatch.setattr(evidence, "FIRST_PAGE", 16)
    monkeypatch.setattr(evidence, "LONGEST_PAGE", 32)
    pages = one.select(PLANTED.query(1))
    assert f1(pages, 1) == pytest.approx(f1(whole, 1), abs=0.1)
    assert len({entry.node_id for entry in pages.nodes}) == len(pages.nodes)


def test_nothing_enters_past_the_filters(store):
    filters = MetadataFilters(filters=[ExactMatchFilter(key="half", value=1)])
    # A person's judgement of a node of the other half does not let it in.
    judged = FeedbackGrader(lambda _: {point_id(2 * row): 1.0 for row in range(20, 30)}, TopicGrader())
    selection = retriever(store, judged, filters=filters).select(PLANTED.query(1), recall=0.9)
    assert selection.nodes
    assert {entry.node.metadata["half"] for entry in selection.nodes} == {1}
    shown = {entry.node.metadata["half"] for entry in selection.refinement.graded_nodes}
    assert shown == {1}


def test_a_score_threshold_holds_for_what_is_selected(store):
    one = retriever(store, vector_store_kwargs={"score_threshold": 0.3})
    selection = one.select(PLANTED.query(1), recall=0.95)
    vectors = PLANTED.vectors[[entry.node.metadata["row"] for entry in selection.nodes]]
    assert len(selection.nodes)

    def heights(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How high rows stand above the background, in its standard deviations."""
        query = query / np.linalg.norm(query)
        others = selection.refinement.background @ query
        return (rows @ query - others.mean()) / others.std()

    first = np.asarray(selection.refinement.query)
    least = (0.3 - (others := selection.refinement.background @ first).mean()) / others.std()
    assert (heights(selection.vector, vectors) > least - 0.02).all()


def test_a_recall_is_certified_where_all_that_a_score_threshold_admits_was_graded(store):
    scores = np.sort(PLANTED.vectors @ PLANTED.queries[0])[::-1]
    made = retriever(
        store,
        trust=1.0,
        feedback_top_k=40,
        vector_store_kwargs={"score_threshold": float(scores[20] + scores[21]) / 2},
    )
    selection = made.select(PLANTED.query(0), recall=0.9, budget=60)
    assert selection.certified, selection.reason


def test_never_grades_more_than_the_budget(store):
    for budget, kwargs in ((12, {}), (40, {"precision": 0.8}), (30, {"recall": 0.5}), (25, {})):
        grader = TopicGrader()
        selection = retriever(store, grader).select(PLANTED.query(4), budget=budget, **kwargs)
        shown = [node for wave in grader.shown for node in wave]
        assert len(shown) == len(set(shown)) <= budget
        assert selection.graded <= budget


def test_what_people_say_takes_nothing_from_the_budget(store):
    likes = [point_id(row) for row in range(PER_TOPIC - 10)]
    grader = TopicGrader()
    query = QueryWithExamples("topic 0", embedding=PLANTED.queries[0].tolist(), like=likes)
    retriever(store, grader).select(query, budget=30)
    assert len([node for wave in grader.shown for node in wave]) == 30


def test_what_people_say_of_a_node_is_not_doubted_as_a_teachers_grade_is(store):
    near = np.argsort(-PLANTED.vectors @ PLANTED.queries[0])
    unlike = [point_id(row) for row in near[PLANTED.labels[near] == 0][:3]]
    like = [point_id(row) for row in near[PLANTED.labels[near] != 0][-3:]]
    query = QueryWithExamples("topic 0", embedding=PLANTED.queries[0].tolist(), like=like, unlike=unlike)
    selected = {entry.node_id for entry in retriever(store).select(query).nodes}
    assert selected.issuperset(like)
    assert selected.isdisjoint(unlike)
    found = retriever(store, score="probability", similarity_top_k=len(PLANTED.labels)).retrieve(query)
    scores = {entry.node_id: entry.score for entry in found}
    assert [scores[node_id] for node_id in (*like, *unlike)] == [1.0] * 3 + [0.0] * 3


def test_a_precision_that_is_certified_is_kept(store):
    found = retriever(store).select_batch([PLANTED.query(topic) for topic in range(TOPICS)], precision=0.8, budget=60)
    certified = [(topic, selection) for topic, selection in enumerate(found) if selection.certified]
    assert len(certified) > TOPICS / 2
    for topic, selection in certified:
        assert selection.reason is None
        assert selection.precision.low >= 0.8
        assert np.mean([found == topic for found in topics(selection.nodes)]) >= 0.8


def test_a_recall_that_is_certified_is_kept(store):
    filters = MetadataFilters(filters=[ExactMatchFilter(key="half", value=0)])
    found = retriever(store, filters=filters).select_batch(
        [PLANTED.query(topic) for topic in range(4)], recall=0.7, budget=150
    )
    certified = [(topic, selection) for topic, selection in enumerate(found) if selection.certified]
    assert certified
    for topic, selection in certified:
        assert selection.recall.low >= 0.7
        assert sum(found == topic for found in topics(selection.nodes)) >= 0.7 * PER_TOPIC / 2


def test_a_recall_that_cannot_be_certified_says_so(store):
    selection = retriever(store).select(PLANTED.query(0), recall=0.99, budget=20)
    assert not selection.certified
    assert "recall of 0.99 cannot be shown" in selection.reason
    assert selection.nodes


def test_a_guesser_certifies_nothing(store):
    rng = np.random.default_rng(3)
    guesser = AnswerGrader(lambda nodes: [float(rng.random() < 0.5) for _ in nodes])
    for topic in range(TOPICS):
        assert not retriever(store, guesser).select(PLANTED.query(topic), precision=0.7, budget=80).certified


def test_a_cut_at_one_half_means_one_half(store):
    one = retriever(store, score="probability", similarity_top_k=60)
    right, kept = 0, 0
    for topic in range(TOPICS):
        nodes = one.retrieve(PLANTED.query(topic))
        scores = [entry.score for entry in nodes]
        assert scores == sorted(scores, reverse=True)
        cut = SimilarityPostprocessor(similarity_cutoff=0.5).postprocess_nodes(nodes)
        kept += len(cut)
        right += sum(found == topic for found in topics(cut))
    assert kept > TOPICS * PER_TOPIC / 2
    assert right / kept > 0.7


def test_a_teacher_that_fails_selects_nothing_and_says_why(store, caplog):
    def fail(nodes):
        raise RuntimeError("the teacher is ill")

    selection = retriever(store, AnswerGrader(fail)).select(PLANTED.query(0))
    assert selection.nodes == []
    assert "the teacher is ill" in selection.reason
    assert "Nothing is selected" in caplog.text
    with pytest.raises(RuntimeError, match="ill"):
        retriever(store, AnswerGrader(fail), on_error="raise").select(PLANTED.query(0))
    unscored = retriever(store, AnswerGrader(fail), score="probability").retrieve(PLANTED.query(0))
    assert len(unscored) == 10
    assert {entry.score for entry in unscored} == {None}


def test_a_teacher_that_fails_later_leaves_the_grades_so_far(store):
    calls = []

    def twice(nodes):
        calls.append(len(nodes))
        if sum(calls) > 12:
            raise RuntimeError("the teacher is ill")
        return [float(node.metadata["topic"] == 0) for node in nodes]

    selection = retriever(store, AnswerGrader(twice)).select(PLANTED.query(0))
    assert selection.nodes
    assert selection.graded == 12
    calls.clear()

    def forbidden(nodes):
        calls.append(len(nodes))
        if sum(calls) > 12:
            raise GraderError("not allowed")
        return [float(node.metadata["topic"] == 0) for node in nodes]

    with pytest.raises(GraderError):
        retriever(store, AnswerGrader(forbidden)).select(PLANTED.query(0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"precision": 1.0}, "precision must be between 0 and 1"),
        ({"recall": 0.0}, "recall must be between 0 and 1"),
        ({"recall": float("nan")}, "recall must be between 0 and 1"),
        ({"confidence": 1.5}, "confidence must be between 0 and 1"),
        ({"precision": 0.9, "recall": 0.9}, "precision and recall are both given"),
        ({"budget": 5}, "budget must be at least feedback_top_k"),
        ({"budget": 25.5}, "budget must be a Budget, a number of documents or None, got 25.5"),
        ({"budget": 12, "precision": 0.9}, "budget must be more than feedback_top_k"),
    ],
)
def test_bad_input_is_refused_by_name(store, arguments, said):
    with pytest.raises(ValueError, match=said):
        retriever(store).select(PLANTED.query(0), **arguments)


def test_other_bad_input_is_refused_by_name(store):
    with pytest.raises(ValueError, match="score must be 'similarity' or 'probability'"):
        retriever(store, score="chance")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        retriever(store).select_batch([PLANTED.query(0)], batch_size=0)
    client = QdrantClient(":memory:")
    client.create_collection("empty", models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    empty = RefinedRetriever.from_collection(client, "empty", text_key="text", grader=TopicGrader())
    with pytest.raises(ValueError, match="collection_name 'empty' has no points"):
        empty.select(QueryBundle("topic 0", embedding=PLANTED.queries[0].tolist()))


def test_a_batch_keeps_the_others_when_one_fails(store):
    bad = QueryBundle("topic 0", embedding=[1.0, 2.0])
    good, failed = retriever(store).select_batch([PLANTED.query(0), bad], return_exceptions=True)
    assert good.nodes
    assert isinstance(failed, ValueError)
    with pytest.raises(ValueError, match="dimensions"):
        retriever(store).select_batch([PLANTED.query(0), bad])


def test_the_cuts_can_be_drawn(store):
    pytest.importorskip("matplotlib")
    selection = retriever(store).select(PLANTED.query(0))
    figure = selection.plot()
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert labels == ["precision", "recall"]
    assert selection.cuts.chosen == len(selection.nodes)
    nothing = retriever(store, AnswerGrader(lambda nodes: [None] * len(nodes))).select(PLANTED.query(0))
    with pytest.raises(ValueError, match="nothing to draw"):
        nothing.plot()
