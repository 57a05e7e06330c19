"""A refinement in a notebook, in a terminal and as a figure."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from rich.console import Console

from llama_index_refine import QueryRefiner, Refinement
from llama_index_refine.display.moves import clean, cost, effect, moves
from tests.small_index import QUERY

HOSTILE = (
    "<script>alert(1)</script> \"><img src=x onerror='x'> [bold red]hi[/] $\\frac{1}$ \x1b[31mred\x1b[0m \u202eevil"
)

# Sockets that earlier tests left to the garbage collector are not what these are about.
no_warnings = pytest.mark.filterwarnings(
    "error", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def hostile(refinement) -> Refinement:
    nodes = [NodeWithScore(node=TextNode(id_=HOSTILE + str(at), text=HOSTILE), score=0.5) for at in range(3)]
    return replace(refinement, query_str=HOSTILE, nodes=nodes, nodes_before=nodes[1:])


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def printed(refinement: Refinement, width: int = 120, **options: object) -> str:
    out = io.StringIO()
    Console(file=out, width=width, **options).print(refinement)
    return out.getvalue()


def test_moves(refinement):
    rows = moves(refinement)
    assert [row.rank for row in rows] == [1, 2, 3, 4, 5] + [None] * len(refinement.lost)
    assert [row.rank_before for row in rows if row.kind == "new"] == [None] * len(refinement.gained)
    before = [NodeWithScore(node=TextNode(id_=name, text=name)) for name in "abcd"]
    after = [before[1], before[0], before[2], NodeWithScore(node=TextNode(id_="e", text="e"))]
    labels = [row.label for row in moves(replace(refinement, nodes_before=before, nodes=after))]
    assert labels == ["↑1", "↓1", "=", "new", "was 4"]


def test_html_shows_query_nodes_grades_moves_and_cost(refinement):
    text = read(refinement._repr_html_()).text
    assert f"“{QUERY}”" in text
    assert f"KL {refinement.kl_before:.3f} → {refinement.kl_after:.3f} nats by 20 grades in 2 rounds" in text
    assert f"{len(refinement.gained)} of 5 nodes new" in text
    for entry in [*refinement.nodes, *refinement.lost]:
        assert entry.text in text
        assert f"{entry.score:.3f}" in text
    assert text.count("new") == 1 + len(refinement.gained)
    assert "0.95" in text
    assert " ms" in text


def test_html_escapes_everything(hostile):
    html = hostile._repr_html_()
    reader = read(html)
    assert set(reader.tags) <= {"div", "b", "bdi", "br", "table", "thead", "tbody", "tr", "th", "td", "span"}
    assert reader.attributes <= {"style", "title"}
    assert "<script>alert(1)</script>" in reader.text
    assert "\u202e" not in html
    assert "\x1b" not in html


def test_html_of_what_was_not_refined(unrefined):
    text = read(unrefined._repr_html_()).text
    assert "Not refined: grading failed: RuntimeError: the teacher is out. These are the first search's nodes." in text
    assert unrefined.nodes[0].text in text
    assert "=" in text


def test_a_reason_is_escaped(unrefined):
    reader = read(replace(unrefined, reason=HOSTILE)._repr_html_())
    assert "script" not in reader.tags
    assert "<script>" in reader.text


def test_terminal_shows_the_same(refinement):
    text = printed(refinement)
    assert f"“{QUERY}”" in text
    for entry in [*refinement.nodes, *refinement.lost]:
        assert entry.text in text
    assert text.count("was ") == len(refinement.lost)
    assert max(map(len, text.splitlines())) <= 120


def test_terminal_does_not_obey_documents(hostile):
    text = printed(hostile, 200, force_terminal=True, color_system="truecolor")
    assert "[bold red]hi[/]" in text
    assert "\x1b[31mred" not in text
    assert "\u202e" not in text


def test_a_narrow_terminal_cuts_instead_of_breaking(refinement):
    rows = [line for line in printed(refinement, 50).splitlines() if "owl" in line]
    assert all(len(line) <= 50 for line in rows)


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("a\n\n b\t c", None, "a b c"),
        ("\x00\x07a\x9b", None, "a"),
        ("abcdef", 4, "abc…"),
        ("abcd", 4, "abcd"),
        ("", 4, ""),
        ("\u2066x\u2069", None, "x"),
        ("lone \ud800 half", None, "lone half"),
    ],
)
def test_clean(text, width, expected):
    assert clean(text, width) == expected


def test_words_of_cost_and_effect(refinement):
    paid = replace(
        refinement, llm_calls=1, prompt_tokens=4020, completion_tokens=20, cached_grades=3, ungraded=2,
        timings={"grade": 1.5, "search": 0.004},
    )  # fmt: skip
    assert cost(paid) == (
        "1 LLM call; 4,020 tokens in, 20 out; 3 grades from the cache; 1.50 s: grade 1.50 s, search 4 ms."
    )
    assert "20 grades in 2 rounds, 2 without a grade; " in effect(paid)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclid"])
def test_plot_draws_all_documents(metric):
    random = np.random.default_rng(1)
    query, documents, background = (random.normal(size=shape).astype("f4") for shape in (6, (8, 6), (5, 6)))
    grades = np.linspace(0, 1, 8)
    refined = QueryRefiner(metric).refine(query, documents, grades, background)
    figure = refined.plot()
    above, below, path, student, bar = figure.axes
    assert bar.get_ylabel() == "grade"
    for axes in (above, below):
        assert sum(patch.get_height() for patch in top(axes)) == 13
    assert bool(above.xaxis_inverted()) == (metric == "euclid")
    around, dots = path.collections
    assert len(around.get_offsets()) == 5
    assert dots.get_array().tolist() == pytest.approx(grades.tolist())
    before, after, _ = student.collections[1:]
    assert np.allclose(before.get_offsets()[:, 0], refined.target[:8])
    assert np.allclose(before.get_offsets()[:, 1], refined.student_before[:8])
    assert np.allclose(after.get_offsets()[:, 1], refined.student_after[:8])
    assert f"{refined.kl_before:.2f} → {refined.kl_after:.2f}" in student.get_title()


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclid"])
@pytest.mark.parametrize("background", [True, False])
def test_plot_and_record_of_matrices(metric, background):
    random = np.random.default_rng(1)
    documents = [random.normal(size=(1 + at % 3, 6)) for at in range(13)]
    query, grades = random.normal(size=(2, 6)), np.linspace(0, 1, 8)
    refined = QueryRefiner(metric).refine(query, documents[:8], grades, documents[8:] if background else None)
    above, below, path, *_ = refined.plot().axes
    for axes in (above, below):
        assert sum(patch.get_height() for patch in top(axes)) == (13 if background else 8)
    assert bool(above.xaxis_inverted()) == (metric == "euclid")
    assert len(path.lines[0].get_xdata()) == 2
    record = refined.to_dict(vectors=True)
    assert np.shape(record["vector"]) == np.shape(record["path"][0]) == (2, 6)
    assert np.shape(record["documents"]) == (8, 2, 6)
    assert record["metric"] == metric


def top(axes):
    """The bars of all groups; stacked, each bar's height is its own group's count."""
    return [patch for container in axes.containers for patch in container]


def test_plot_shows_each_round(refinement):
    path = refinement.plot().axes[2]
    assert len(path.lines[0].get_xdata()) == 3


@no_warnings
def test_plot_survives_hostile_queries(hostile, tmp_path):
    figure = hostile.plot()
    figure.savefig(tmp_path / "figure.png")
    assert "<script>" in figure.get_suptitle()


@no_warnings
@pytest.mark.parametrize("grade", [0.0, 1.0])
def test_plot_of_two_documents_of_one_grade(grade, tmp_path):
    refined = QueryRefiner("dot").refine(np.ones(1, "f4"), np.array([[1.0], [2.0]], "f4"), [grade, grade])
    refined.plot().savefig(tmp_path / "figure.png")


def test_plot_leaves_pyplot_as_it_was(refinement):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    refinement.plot()
    assert pyplot.get_fignums() == before


def test_plot_of_nothing_says_why(unrefined):
    with pytest.raises(ValueError, match="nothing was refined: grading failed: RuntimeError: the teacher is out"):
        unrefined.plot()


def test_looking_does_not_import_matplotlib_and_plotting_names_the_extra():
    program = """
import sys
sys.modules["matplotlib"] = None
import numpy as np
from llama_index_refine import QueryRefiner
refined = QueryRefiner().refine(np.ones(2, "f4"), np.eye(2, dtype="f4"), [1, 0])
refined._repr_html_(), refined.__rich__(), refined.to_json(), repr(refined)
try:
    refined.plot()
except ImportError as error:
    assert 'pip install "llama-index-refine[plot]"' in str(error), error
else:
    raise SystemExit("no ImportError")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_html_renders_as_one_block(refinement):
    assert re.match(r"<div .*</div>$", refinement._repr_html_(), re.DOTALL)
