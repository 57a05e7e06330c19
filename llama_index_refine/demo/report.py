"""What the demo measured, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from llama_index.core.schema import NodeWithScore
from rich.table import Table

from llama_index_refine.demo.measure import GRADED, SHOWN, Example, Gain
from llama_index_refine.display.ranking import Place, ranking_table

METRICS = ("MAP", "nDCG@10", "P@10")


def gain_table(gain: Gain) -> Table:
    """Make the table of the three methods."""
    rows = {
        "no feedback": gain.plain,
        f"reranked, {GRADED} graded": gain.reranked,
        f"refined, {GRADED} graded": gain.refined,
    }
    table = Table("", *METRICS, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, measured in rows.items():
        style = "bold" if measured is gain.refined else ""
        table.add_row(name, *(f"{measured.mean(metric):.3f}" for metric in METRICS), style=style)
    return table


def summary(gain: Gain) -> str:
    """Say how many queries gained, and how many lost."""
    differences = gain.differences()
    better, worse = (sum(sign * d > 1e-6 for d in differences) for sign in (1, -1))
    change = gain.refined.mean("MAP") / gain.plain.mean("MAP") - 1
    return (
        f"MAP {change:+.0%} by refining: {better} of {len(differences)} queries got better, "
        f"{worse} worse, {len(differences) - better - worse} stayed."
    )


def bill(gain: Gain, example: Example) -> str:
    """Say what the LLM was asked in all, the query that is shown included; empty where it was not."""
    both, count, shown = (gain.reranked, gain.refined), len(gain.differences()), example.refinement
    calls = sum(measured.llm_calls for measured in both) * count + shown.llm_calls
    tokens = sum(measured.prompt_tokens + measured.completion_tokens for measured in both) * count
    tokens += shown.prompt_tokens + shown.completion_tokens
    return f"The LLM was asked {calls:,.0f} times, {tokens:,.0f} tokens in all." if calls else ""


def example_tables(example: Example) -> list[Table]:
    """Make the lists of one query, before and after."""
    refinement = example.refinement
    grades = refinement.grade_of

    def places(nodes: Sequence[NodeWithScore], compared: bool) -> list[Place]:
        found = []
        for entry in islice(nodes, SHOWN):
            document = str(entry.node.metadata["document"])
            was = str(example.ranks[document]) if compared else ""
            found.append(Place(entry.text, grades.get(entry.node.node_id), was, document in example.relevant))
        return found

    return [
        ranking_table("First search", places(refinement.nodes_before, False)),
        ranking_table("Refined", places(refinement.nodes, True)),
    ]
