from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llama_index_refine.evaluation import report
from llama_index_refine.evaluation.plots import draw
from llama_index_refine.evaluation.results import BASELINE, REFINED, Cell, Distribution, Measured, Run

QUERIES = [f"q{i}" for i in range(20)]


def measured(level: float, seed: int = 0, **more: object) -> Measured:
    noise = 0.02 * np.random.default_rng(seed).normal(size=20)
    values = (level + noise).tolist()
    metrics = {name: list(values) for name in ("MAP", "nDCG@10", "recall@100", "P@10", "ROC AUC", "class gap")}
    return Measured(metrics, **more)


def make_run(ours: float = 0.6, k: tuple[int, ...] = (10, 20), queries: list[str] = QUERIES) -> Run:
    edges = [-1.0, 0.0, 1.0]
    counts = {f"{kind} {when}": [3, 4] for kind in ("relevant", "irrelevant") for when in ("before", "after")}
    methods = {
        BASELINE: measured(0.3),
        "paper": measured(0.4, 1, llm_calls=20.0, prompt_tokens=100.0, completion_tokens=20.0),
        "paper tuned": measured(0.5, 2, settings="rate 0.0003"),
        REFINED: measured(ours, 3, seconds={"search": 0.012, "refine": 0.0005}, per_stem={"7": 0.25}),
    }
    cells = [
        Cell("toy", "minilm", teacher, depth, 240, queries, dict(methods), Distribution(edges, counts))
        for teacher in ("gold", "noisy")
        for depth in k
    ]
    cells[0].skipped["hyde"] = "needs the embedding model behind toy.npz"
    return Run({"data": ["toy"], "seed": 1, "llm": None}, {"system": "Linux", "python": "3.11"}, cells)


def test_table_has_every_cell_and_names_the_best() -> None:
    table = report.markdown(make_run())
    assert "| data | teacher | graded | no feedback | paper | paper tuned | refined |" in table
    assert table.count("| toy (minilm) | gold | 10 |") == 2
    assert "seed 1" in table
    assert "llm None" not in table
    overview = table.split("## MAP\n")[1].split("##")[0]
    assert all(
        line.count("**") == 2 and line.rstrip(" |").endswith("**") for line in overview.split("\n") if "toy" in line
    )


def test_details_have_costs_intervals_and_what_was_left_out() -> None:
    table = report.markdown(make_run())
    gold = table.split("## toy (minilm), gold teacher, 10 graded")[1].split("\n## ")[0]
    rows = {line.split(" | ")[0].strip("| "): line for line in gold.split("\n") if line.startswith("| ")}
    assert "20.0 | 120 |" in rows["paper"]
    assert "paper tuned (rate 0.0003)" in rows
    assert "search 12.0, refine 0.5" in rows["refined"]
    assert "0.250" in rows["refined"]
    assert "+0.1" in rows["paper"]
    assert "+0.2" in rows["paper"]
    assert "Without hyde: needs the embedding model" in gold
    assert "20 queries, 240 documents" in gold


def test_gain_is_set_beside_the_published_procedures() -> None:
    table = report.markdown(make_run())
    ratios = table.split("## Gain beside the published procedure")[1].split("\n## ")[0]
    gold = next(line for line in ratios.split("\n") if line.startswith("| gold"))
    assert [float(part.split("(")[0]) for part in gold.split("|")[2:4]] == pytest.approx([3.0, 1.5], abs=0.15)
    assert "(2 of 2)" in gold


def test_comparison_is_query_by_query() -> None:
    """The same queries in another order, and one run with fewer of them."""
    before, after = make_run(0.5), make_run(0.6)
    for cell in after.cells:
        cell.queries = QUERIES[:15]
        for found in cell.measured.values():
            found.per_query = {name: values[:15] for name, values in found.per_query.items()}
    table = report.compare(before, after)
    row = next(line for line in table.split("\n") if "| gold | 10 | refined |" in line)
    assert "| 15 |" in row
    assert "+0.100 [+0.100, +0.100]" in row
    same = next(line for line in table.split("\n") if "| gold | 10 | paper |" in line)
    assert "+0.000 [+0.000, +0.000]" in same


def test_runs_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(ValueError, match="in common"):
        report.compare(make_run(k=(5,)), make_run(k=(20,)))


def test_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        Run.load(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="not a run of this benchmark"):
        Run.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        Run.load(tmp_path)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    drawn = draw(make_run(), tmp_path)
    assert [path.name for path in drawn] == ["gain.png", "graded.png", "scores-toy--minilm.png"]
    for path in drawn:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 5


def test_quality_against_graded_documents_needs_several_numbers(tmp_path: Path) -> None:
    assert "graded.png" not in [path.name for path in draw(make_run(k=(20,)), tmp_path)]
