from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import BaseNode, QueryBundle, TextNode

from llama_index_refine.evaluation.cache import Answers, ReplayingGrader, cached_vectors, default_cache_dir
from llama_index_refine.graders.account import Account, current_account
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.ids import key_of

TEXTS = [f"text {i}" for i in range(2500)]


class CountingGrader(BaseGrader):
    """Grades by the length of the text, charges for it, and fails on some."""

    def __init__(self, name: str = "model") -> None:
        super().__init__()
        self.name = name
        self.asked: list[str] = []

    def fingerprint(self) -> str:
        return self.name

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        account = current_account()
        for _ in nodes:
            account.open_call()
            account.charge(prompt_tokens=10, completion_tokens=1)
        self.asked += [node.get_content() for node in nodes]
        lengths = [len(node.get_content()) for node in nodes]
        grades = [
            None if node.get_content() == "broken" else length / 10 for node, length in zip(nodes, lengths, strict=True)
        ]
        return Grades(grades, [length / 100 for length in lengths])


def nodes_of(*texts: str) -> list[TextNode]:
    return [TextNode(text=text) for text in texts]


def lengths(texts: Sequence[str]) -> np.ndarray:
    return np.array([[len(text), hash(text) % 7] for text in texts], dtype=np.float32)


def test_vectors_are_made_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        calls.append(len(texts))
        return lengths(texts)

    done: list[int] = []
    first = cached_vectors(tmp_path, "model", TEXTS, embed, done.append)
    assert (sum(calls), sum(done)) == (2500, 2500)
    assert (cached_vectors(tmp_path, "model", TEXTS, embed) == first).all()
    assert sum(calls) == 2500
    cached_vectors(tmp_path, "another model", TEXTS, embed)
    cached_vectors(tmp_path, "model", TEXTS[::-1], embed)
    assert sum(calls) == 7500


def test_embedding_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    embedded: list[str] = []

    def embed_until_stopped(texts: Sequence[str]) -> np.ndarray:
        if len(embedded) > 2000:
            raise KeyboardInterrupt
        embedded.extend(texts)
        return lengths(texts)

    def embed(texts: Sequence[str]) -> np.ndarray:
        embedded.extend(texts)
        return lengths(texts)

    with pytest.raises(KeyboardInterrupt):
        cached_vectors(tmp_path, "model", TEXTS, embed_until_stopped)
    vectors = cached_vectors(tmp_path, "model", TEXTS, embed)
    assert embedded == TEXTS
    np.testing.assert_array_equal(vectors, lengths(TEXTS))


def test_grades_are_asked_for_once_and_charged_again(tmp_path: Path) -> None:
    grader = CountingGrader()
    query = QueryBundle("query")
    with Account().active() as first:
        grades = ReplayingGrader(grader, Answers(tmp_path / "a.sqlite")).grade(query, nodes_of("a", "bb"))
    assert grades == [0.1, 0.2]
    again = ReplayingGrader(grader, Answers(tmp_path / "a.sqlite"))
    with Account().active() as second:
        replayed = again.grade(query, nodes_of("bb", "a", "ccc"))
    assert (replayed, replayed.spread) == ([0.2, 0.1, 0.3], [0.02, 0.01, 0.03])
    assert grader.asked == ["a", "bb", "ccc"]
    assert (first.calls, first.prompt_tokens, first.completion_tokens) == (2, 20, 2)
    assert (second.calls, second.prompt_tokens, second.completion_tokens) == (3, 30, 3)
    assert (first.cached, second.cached) == (0, 2)
    assert again.seconds > 0


async def test_asynchronous_grades_come_from_the_same_cache(tmp_path: Path) -> None:
    grader = CountingGrader()
    cached = ReplayingGrader(grader, Answers(tmp_path / "a.sqlite"))
    assert await cached.agrade(QueryBundle("query"), nodes_of("a", "bb")) == [0.1, 0.2]
    assert cached.grade(QueryBundle("query"), nodes_of("bb")) == [0.2]
    assert len(grader.asked) == 2


def test_another_query_or_teacher_is_another_grade(tmp_path: Path) -> None:
    first, larger, answers = CountingGrader(), CountingGrader("larger"), Answers(tmp_path / "a.sqlite")
    for teacher, query in ((first, "query"), (first, "other"), (first, "query"), (larger, "query")):
        ReplayingGrader(teacher, answers).grade(QueryBundle(query), nodes_of("a"))
    assert (len(first.asked), len(larger.asked)) == (2, 1)
    assert ReplayingGrader(larger, answers).fingerprint() == "larger"


def test_a_failed_grade_is_asked_for_again(tmp_path: Path) -> None:
    grader = CountingGrader()
    cached = ReplayingGrader(grader, Answers(tmp_path / "a.sqlite"))
    for _ in range(2):
        assert cached.grade(QueryBundle("query"), nodes_of("broken", "a")) == [None, 0.1]
    assert grader.asked == ["broken", "a", "broken"]


def test_answers_are_kept_as_they_are(tmp_path: Path) -> None:
    kept = {key_of("a", "b"): {"grade": 0.5}, key_of("ab"): "text: ä"}
    Answers(tmp_path / "new" / "a.sqlite").put(kept)
    assert Answers(tmp_path / "new" / "a.sqlite").get([*kept, "unknown"]) == kept


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LLAMA_INDEX_REFINE_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / "xdg" / "llama-index-refine"
    monkeypatch.setenv("LLAMA_INDEX_REFINE_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
