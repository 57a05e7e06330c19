import gzip
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle, TextNode
from sklearn.metrics import roc_auc_score

from llama_index_refine.evaluation.datasets import Dataset, Document, Query, load_folder
from llama_index_refine.evaluation.teachers import (
    YES_RATES,
    LabelledQuery,
    LabelTeacher,
    NoisyTeacher,
    YesNoTeacher,
    make_teacher,
    node_id,
)

MANY = Dataset(
    "many",
    [Document(f"d{i}", "text") for i in range(6000)],
    [Query("q", "query")],
    {"q": {f"d{i}": 1 for i in range(0, 6000, 2)}},
)


def nodes_of(dataset: Dataset) -> list[TextNode]:
    return [TextNode(id_=node_id(document.id), text=document.text) for document in dataset.documents]


async def test_labels_are_the_grades(toy: Path) -> None:
    data = load_folder(toy)
    query, nodes = LabelledQuery("anything", query_id="q1"), nodes_of(data)
    grades = LabelTeacher(data).grade(query, nodes)
    assert grades == [float(40 <= i < 80) for i in range(240)]
    assert await LabelTeacher(data).agrade(query, nodes[38:42]) == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(("name", "auc"), [("noisy", 0.933), ("weak", 0.76), ("random", 0.5), ("auc:0.85", 0.85)])
def test_noise_has_the_quality_asked_for(name: str, auc: float) -> None:
    query = LabelledQuery("query", query_id="q")
    grades = make_teacher(name, MANY).grade(query, nodes_of(MANY))
    assert roc_auc_score([i % 2 == 0 for i in range(6000)], grades) == pytest.approx(auc, abs=0.012)
    assert 0 <= min(grades) < max(grades) <= 1


async def test_grades_that_were_kept_are_given_again(toy: Path, tmp_path: Path) -> None:
    data = load_folder(toy)
    path = tmp_path / f"some-model--{data.name}.tsv.gz"
    lines = ["query\tdocument\tgrade\tprompt", "q1\td1\t0.75\tyes_no", "q1\td0\t0.25\tyes_no", "q2\td2\t1\tyes_no"]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    teacher = make_teacher(f"recorded:{tmp_path}/some-model", data)
    query = LabelledQuery("anything", query_id="q1")
    known = {document.id: node_id(document.id) for document in data.documents}
    nodes = [TextNode(id_=known[name], text=name) for name in ("d0", "d1", "d2")]
    assert teacher.grade(query, nodes) == await teacher.agrade(query, nodes) == [0.25, 0.75, None]
    with pytest.raises(TypeError, match="LabelledQuery"):
        teacher.grade(QueryBundle("anything"), nodes)


# Without the time, which would give the tests of two processes other names.
WITHOUT_GRADES = gzip.compress(b"query\tdocument\nq\td\n", mtime=0)
DAMAGED = WITHOUT_GRADES[:12] + bytes(byte ^ 255 for byte in WITHOUT_GRADES[12:])


@pytest.mark.parametrize("content", [None, b"no gzip", WITHOUT_GRADES, WITHOUT_GRADES[:-9], DAMAGED])
def test_a_file_without_grades_is_named(toy: Path, tmp_path: Path, content: bytes | None) -> None:
    data = load_folder(toy)
    if content is not None:
        (tmp_path / f"some-model--{data.name}.tsv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"some-model--.* holds no recorded grades .*recorded:FOLDER/MODEL"):
        make_teacher(f"recorded:{tmp_path}/some-model", data)


def test_noise_is_the_same_for_the_same_pair() -> None:
    query, nodes = LabelledQuery("query", query_id="q"), nodes_of(MANY)[:50]
    whole = make_teacher("noisy", MANY).grade(query, nodes)
    assert make_teacher("noisy", MANY).grade(query, nodes[::-1]) == whole[::-1]
    other = Dataset("other", MANY.documents, MANY.queries, MANY.qrels)
    assert make_teacher("noisy", other).grade(query, nodes) != whole


def test_more_spread_is_bolder_and_not_better() -> None:
    query, nodes = LabelledQuery("query", query_id="q"), nodes_of(MANY)
    shy, bold = (np.array(NoisyTeacher(MANY, 0.8, spread).grade(query, nodes)) for spread in (0.5, 3.0))
    assert abs(bold - 0.5).mean() > abs(shy - 0.5).mean()
    assert (bold.argsort() == shy.argsort()).mean() > 0.99


def test_a_query_without_id_is_refused(toy: Path) -> None:
    with pytest.raises(TypeError, match="LabelledQuery"):
        LabelTeacher(load_folder(toy)).grade(QueryBundle("query"), [])


@pytest.mark.parametrize("name", ["gould", "auc:high", "auc:1", "auc:0.4", "auc"])
def test_unknown_teacher_tells_the_known(toy: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"auc:0.85"):
        make_teacher(name, load_folder(toy))


def test_spread_must_be_positive() -> None:
    with pytest.raises(ValueError, match="spread"):
        NoisyTeacher(MANY, 0.8, 0.0)


@pytest.mark.parametrize("name", YES_RATES)
def test_one_sided_errors_come_at_their_rates(name: str) -> None:
    query = LabelledQuery("query", query_id="q")
    grades = np.array(make_teacher(name, MANY).grade(query, nodes_of(MANY)))
    assert set(grades) <= {0.0, 1.0}
    assert (grades[::2].mean(), grades[1::2].mean()) == pytest.approx(YES_RATES[name], abs=0.04)


@pytest.mark.parametrize("rates", [(1.1, 0.0), (0.5, -0.1), (float("nan"), 0.0)])
def test_rates_are_probabilities(rates: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="of_"):
        YesNoTeacher(MANY, *rates)
