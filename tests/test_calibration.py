"""What people's labels say of a teacher, and certificates that are about people."""

import json

import numpy as np
import pytest
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.storage.kvstore import SimpleKVStore
from scipy.stats import binom

from llama_index_refine import (
    Calibration,
    FeedbackGrader,
    RefinedRetriever,
    RefinementMemory,
    propose,
)
from llama_index_refine.calibration import Label
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.refining.trust import Reliability
from llama_index_refine.selecting.certificate import certify_for_people
from llama_index_refine.selecting.people import share
from tests.planted import PER_TOPIC, SIZE, TOPICS, Planted, TopicGrader, point_id
from tests.selecting.test_certificate import perform

PLANTED = Planted()
KINDS = {"good": (0.97, 0.02), "lenient": (0.98, 0.3), "strict": (0.7, 0.01)}


class ErringGrader(BaseGrader):
    """Says yes to relevant documents, and to others, at planted rates; the same each time it is asked."""

    def __init__(self, sensitivity: float, false_yes: float, seed: int = 0):
        self.rates, self.seed = (false_yes, sensitivity), seed

    def grade(self, query, nodes):
        topic = int(query.query_str.split()[1])
        return [
            float(np.random.default_rng([self.seed, topic, node.metadata["row"]]).random()
                  < self.rates[node.metadata["topic"] == topic])
            for node in nodes
        ]  # fmt: skip

    def decides(self):
        return [*self.rates, self.seed]


class TextEmbedding(MockEmbedding):
    """The planted query that a text names."""

    def _get_query_embedding(self, query):
        return PLANTED.queries[int(query.split()[1])].tolist()

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)


@pytest.fixture(scope="module")
def store():
    return PLANTED.store()


def retriever(store, grader=None, **kwargs):
    return RefinedRetriever(
        store, TextEmbedding(embed_dim=SIZE), grader or TopicGrader(), **{"feedback_top_k": 12, **kwargs}
    )


def judged(count, seed=0):
    """Right labels, half of them of relevant nodes."""
    rng = np.random.default_rng(seed)
    found = []
    for at in range(count):
        topic, relevant = at % TOPICS, bool(rng.random() < 0.5)
        label = topic if relevant else (topic + rng.integers(1, TOPICS)) % TOPICS
        found.append((f"topic {topic}", point_id(int(label * PER_TOPIC + rng.integers(PER_TOPIC))), relevant))
    return list(dict.fromkeys(found))


def planted(rng, count, sensitivity, false_yes, per_query=1):
    """A calibration from labels of a teacher with these error rates."""
    people = rng.random(count) < 0.5
    grades = (rng.random(count) < np.where(people, sensitivity, false_yes)).astype(float)
    return Calibration("t", [Label(f"{at // per_query}", str(at), bool(one)) for at, one in enumerate(people)], grades)


@pytest.mark.parametrize("count", [50, 500])
@pytest.mark.parametrize("kind", KINDS)
def test_people_find_certified_sets_imprecise_as_rarely_as_promised(kind, count):
    wrong, runs, third = 0, 200, 0.1 / 3
    for seed in range(runs):
        rng = np.random.default_rng([seed, count])
        calibration = planted(rng, count, *KINDS[kind], per_query=5)
        # Just under the target, so that every certificate is wrong.
        relevant = rng.permutation(np.arange(300) < 300 * 0.88)
        yes = rng.random(300) < np.where(relevant, *KINDS[kind])
        draws = certify_for_people(
            rng.permutation(300),
            (150, 300),
            {at: bool(yes[at]) for at in range(20)},
            0.9,
            calibration.needed(0.9, 2 * third),
            lambda said, one=calibration: one.corrected(said, 2 * third),
            third,
            150,
        )
        wrong += perform(draws, lambda at, yes=yes: bool(yes[at]))[0].certified
    assert wrong <= binom.ppf(0.999, runs, 0.1)


def test_a_pure_set_is_certified_where_labels_are_enough():
    rng = np.random.default_rng(0)
    certified = {}
    for count in (50, 2000):
        one = planted(rng, count, 0.85, 0.02)
        yes = rng.random(600) < 0.85
        needed = one.needed(0.9, 0.2 / 3)
        draws = certify_for_people(
            rng.permutation(600), (600,), {}, 0.9, needed, lambda said, one=one: one.corrected(said, 0.1), 0.1 / 3, 600
        )
        certified[count] = needed, perform(draws, lambda at, yes=yes: bool(yes[at]))[0]
    assert certified[50][0] > certified[2000][0]
    assert certified[2000][1].certified
    assert certified[2000][1].value.low >= 0.9


@pytest.mark.parametrize("per_query", [1, 5])
@pytest.mark.parametrize("count", [50, 500])
def test_intervals_hold_the_truth_as_often_as_they_say(count, per_query):
    inside = np.zeros(3)
    runs = 100
    for seed in range(runs):
        rng = np.random.default_rng([seed, count, per_query])
        # Queries differ in how hard they are, where several labels are of one.
        hard = np.repeat(rng.beta(9, 1, count // per_query), per_query) if per_query > 1 else np.full(count, 0.9)
        people = rng.random(count) < 0.5
        yes = np.where(rng.random(count) < hard, people, ~people)
        labels = [Label(str(at // per_query), str(at), bool(one)) for at, one in enumerate(people)]
        one = Calibration("t", labels, yes.astype(float))
        truth = ((one.sensitivity, 0.9), (one.auc, 0.9), (one.kappa, 0.8))
        inside += [interval.low <= value <= interval.high for interval, value in truth]
    assert (inside >= binom.ppf(0.001, runs, 0.95)).all()


def test_labels_chosen_by_the_grade_give_the_rates_of_all():
    rng = np.random.default_rng(3)
    people = rng.random(4000) < 0.2
    yes = rng.random(4000) < np.where(people, 0.8, 0.1)
    labels, grades = [], []
    for kind in (True, False):
        there = np.flatnonzero(yes == kind)
        for at in rng.choice(there, 300, replace=False):
            labels.append(Label(str(at), str(at), bool(people[at]), len(there) / 300))
            grades.append(float(kind))
    one = Calibration("t", labels, np.array(grades))
    assert one.sensitivity.low < 0.8 < one.sensitivity.high
    assert one.sensitivity.estimate == pytest.approx(0.8, abs=0.1)
    assert one.false_yes.low < 0.1 < one.false_yes.high


def test_labels_of_one_query_that_hang_together_tell_less():
    values = np.repeat([1, 0, 1, 1, 0, 1, 1, 0, 1, 1], 10)
    apart, together = share(values, [*map(str, range(100))]), share(values, [str(at // 10) for at in range(100)])
    assert together.size < 12 < apart.size <= 100
    assert together.interval(0.05).low < apart.interval(0.05).low


def test_calibrate_says_what_a_teacher_is_worth(store, tmp_path):
    one = retriever(store, ErringGrader(0.9, 0.1)).calibrate(judged(200))
    assert one.sensitivity.low < 0.9 < one.sensitivity.high
    assert one.auc.low > 0.7
    assert "good enough for ranking and for selecting" in one.verdict
    assert "labels of 8 queries" in repr(one)
    assert "area under the ROC curve" in one._repr_html_()
    assert one.plot().axes
    one.save(tmp_path / "one.safetensors")
    again = Calibration.load(tmp_path / "one.safetensors")
    assert again.rows() == one.rows()
    assert again.labels == one.labels
    (tmp_path / "no").write_text("x")
    with pytest.raises(ValueError, match=r"Calibration\.save"):
        Calibration.load(tmp_path / "no")


async def test_it_is_the_same_without_blocking(store):
    one = retriever(store)
    assert (await one.acalibrate(judged(30))).rows() == one.calibrate(judged(30)).rows()


def test_labels_that_say_little_are_said_to(store):
    one = retriever(store)
    alike = one.calibrate([label for label in judged(40) if label[2]])
    assert any("all labels are alike, relevant" in note for note in alike.notes)
    few = one.calibrate([label for label in judged(60) if label[0] == "topic 1"])
    assert any("of 1 query" in note for note in few.notes)
    first = judged(20)[0]
    both = one.calibrate([*judged(20), first, (first[0].upper(), first[1], not first[2])])
    assert len(both.labels) == len(judged(20)) - 1
    assert any("relevant and not relevant" in note for note in both.notes)
    twice = one.calibrate([*judged(20), *judged(20)])
    assert twice.rows() == one.calibrate(judged(20)).rows()
    assert any("count once" in note for note in twice.notes)
    gone = one.calibrate([*judged(20), ("topic 1", point_id(99999), True)])
    assert any("1 of the nodes that were judged are gone" in note for note in gone.notes)


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ([], "hold no label"),
        ([("topic 1", point_id(1), 0.5)], "True or False"),
        (["topic 1"], "judgements must be"),
        ("labels.txt", "named .jsonl or .csv"),
        ([("topic 1", point_id(1), True), ("topic 1", point_id(1), False)], "contradict"),
        ([("topic 1", point_id(99999), True)], "graded none"),
    ],
)
def test_what_is_no_label_is_refused_by_name(store, judgements, message):
    with pytest.raises(ValueError, match=message):
        retriever(store).calibrate(judgements)


def test_people_do_not_check_themselves(store):
    labels = judged(10)
    people = FeedbackGrader({labels[0][0]: {labels[0][1]: 1.0}}, TopicGrader())
    with pytest.raises(ValueError, match="teacher behind it"):
        retriever(store, people).calibrate(labels)


def test_files_and_memories_are_read(store, tmp_path):
    labels, memory = judged(40), RefinementMemory(SimpleKVStore())
    one = retriever(store, memory=memory)
    plain = one.calibrate(labels).rows()
    lines = [json.dumps({"query": query, "id": node, "relevant": int(said)}) for query, node, said in labels]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"query": "topic 1", "id": "x", "relevant": ""}']))
    assert one.calibrate(tmp_path / "a.jsonl").rows() == plain
    rows = [f"{query},{node},{'yes' if said else 'no'}" for query, node, said in labels]
    (tmp_path / "a.csv").write_text("\n".join(["query,id,relevant", *rows]))
    assert one.calibrate(str(tmp_path / "a.csv")).rows() == plain
    for query, node, said in labels:
        one.judge(query, node, float(said))
    assert one.calibrate(memory).rows() == plain
    (tmp_path / "b.csv").write_text("query,id,relevant\ntopic 1,x,maybe\n")
    with pytest.raises(ValueError, match=r"line 2: relevant must be 1 or 0"):
        one.calibrate(tmp_path / "b.csv")


def test_a_calibration_is_of_one_teacher(store):
    one = retriever(store).calibrate(judged(20))
    with pytest.raises(ValueError, match=r"another teacher.*ErringGrader"):
        retriever(store, ErringGrader(0.9, 0.1), calibration=one)


def test_probabilities_go_by_the_labels(store):
    """A lenient teacher's yes is worth less once people have said so."""
    lenient = ErringGrader(0.98, 0.4)
    calibration = retriever(store, lenient).calibrate(judged(400))
    said, truth = [], []
    for topic in range(4):
        guessed, told = (
            retriever(store, ErringGrader(0.98, 0.4), trust=Reliability(), calibration=one).select(
                f"topic {topic}", budget=40
            )
            for one in (None, calibration)
        )
        said.append(told.precision.estimate)
        truth.append(np.mean([entry.node.metadata["topic"] == topic for entry in told.nodes]))
        assert told.expected_total < guessed.expected_total
    assert np.mean(said) == pytest.approx(np.mean(truth), abs=0.15)


def test_a_selection_can_be_certified_for_people(store):
    exact = retriever(store).calibrate(judged(600))
    one = retriever(store, calibration=exact)
    found = one.select_batch([f"topic {topic}" for topic in range(TOPICS)], precision=0.6, budget=150, about="people")
    certified = [(topic, each) for topic, each in enumerate(found) if each.certified]
    assert len(certified) >= TOPICS / 2
    for topic, each in certified:
        assert each.precision.low >= 0.6
        assert np.mean([entry.node.metadata["topic"] == topic for entry in each.nodes]) >= 0.6


def test_what_was_drawn_below_the_set_that_was_shown_is_not_selected_for_people(store):
    exact, below = retriever(store).calibrate(judged(600)), 0
    for topic in range(TOPICS):
        grader = TopicGrader()
        found = retriever(store, grader, calibration=exact).select(
            f"topic {topic}", precision=0.5, budget=150, about="people"
        )
        refining = {entry.node_id for entry in found.refinement.graded_nodes}
        drawn = {node_id for wave in grader.shown for node_id in wave} - refining
        chosen = {entry.node_id for entry in found.nodes}
        near = {point_id(row): value for row, value in enumerate(PLANTED.vectors @ found.vector)}
        first_left_out = max(near[node_id] for node_id in near.keys() - drawn - refining - chosen)
        assert all(near[node_id] > first_left_out for node_id in drawn & chosen)
        below += found.certified and any(near[node_id] < first_left_out for node_id in drawn)
    assert below


@pytest.mark.parametrize("kind", ["good", "lenient"])
def test_what_is_certified_for_people_is_so(store, kind):
    missed = certified = 0
    for seed in range(1):
        grader = ErringGrader(*KINDS[kind], seed=seed)
        one = retriever(store, grader, calibration=retriever(store, grader).calibrate(judged(400, seed)))
        for topic in range(TOPICS):
            found = one.select(f"topic {topic}", precision=0.6, budget=80, about="people")
            right = np.mean([entry.node.metadata["topic"] == topic for entry in found.nodes] or [1])
            certified += found.certified
            missed += found.certified and right < 0.6
    assert missed <= binom.ppf(0.999, TOPICS, 0.1)
    assert certified or kind == "lenient"


def test_too_few_labels_say_how_many_more(store):
    grader = ErringGrader(0.95, 0.05)
    one = retriever(store, grader, calibration=retriever(store, grader).calibrate(judged(50)))
    found = one.select("topic 2", precision=0.9, about="people")
    assert not found.certified
    assert "more labels" in found.reason
    with pytest.raises(ValueError, match="needs labels"):
        retriever(store).select("topic 2", precision=0.9, about="people")
    with pytest.raises(ValueError, match="recall cannot be certified"):
        one.select("topic 2", recall=0.9, about="people")
    with pytest.raises(ValueError, match="about must be"):
        one.select("topic 2", precision=0.9, about="everybody")


def test_proposed_nodes_are_of_both_kinds_and_new(store):
    one = retriever(store, ErringGrader(0.9, 0.1))
    refinements = one.refine_batch([f"topic {topic}" for topic in range(TOPICS)])
    rows = propose(refinements, 40)
    assert len({(row["query"], row["id"]) for row in rows}) == 40
    assert len({row["weight"] for row in rows}) == 2
    pool = sum(len(found.grades) for found in refinements)
    assert sum(row["weight"] for row in rows) == pytest.approx(pool, rel=1e-3)
    topics = {point_id(row): int(label) for row, label in enumerate(PLANTED.labels)}
    labels = [
        Label(row["query"], row["id"], topics[row["id"]] == int(row["query"].split()[1]), row["weight"]) for row in rows
    ]
    known = one.calibrate(labels)
    again = propose(refinements, 1000, known)
    assert len(again) == pool - 40
    assert not {(row["query"], row["id"]) for row in rows} & {(row["query"], row["id"]) for row in again}
    with pytest.raises(ValueError, match="count"):
        propose(refinements, 0)
    with pytest.raises(ValueError, match="no graded node"):
        propose([], 5)


def test_what_people_said_of_a_node_that_has_changed_since_is_no_label():
    labels, memory = judged(40), RefinementMemory(SimpleKVStore())
    store = PLANTED.store()
    one = retriever(store, memory=memory)
    for query, node, said in labels:
        one.judge(query, node, float(said))
    changed = labels[0][1]
    (node,) = [node for node in PLANTED.nodes() if node.node_id == changed]
    store.add([node.model_copy(update={"text": "something else by now"})])
    found = one.calibrate(memory)
    assert changed not in {label.node_id for label in found.labels}
    assert found.labels
    assert any("changed since" in note for note in found.notes)


def test_a_node_that_has_a_label_is_not_proposed_however_id_and_query_are_spelled(store):
    one = retriever(store, ErringGrader(0.9, 0.1))
    refinements = one.refine_batch([f"topic {topic}" for topic in range(TOPICS)])
    rows = propose(refinements, 40)
    labels = [Label(f" {row['query'].upper()}", row["id"].upper(), at % 2 == 0) for at, row in enumerate(rows)]
    known = Calibration("t", labels, np.full(40, 0.7))
    again = propose(refinements, 1000, known)
    assert not {(row["query"], row["id"]) for row in rows} & {(row["query"], row["id"]) for row in again}
