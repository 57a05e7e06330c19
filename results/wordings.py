"""The question itself: how well a served LLM tells relevant documents apart, by how it is asked.

    python -m results.wordings record data/argkp data/banking77 --model qwen2.5-coder-1.5b-q4_k_m \
        --base-url http://127.0.0.1:8080/v1
    python -m results.wordings tables data/argkp data/banking77 --model qwen2.5-coder-1.5b-q4_k_m

Grades are kept as those of `results.llm`, in a file for each way of asking. Recording goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike

from llama_index_refine import BaseGrader, ListwiseGrader, ScaleGrader
from llama_index_refine.evaluation.metrics import area_under_roc
from llama_index_refine.graders.asking.prompts import YES_NO
from llama_index_refine.graders.openai import OpenAIGrader
from results.llm import about, command, table
from results.recorded import PROMPT, K, Kept, RecordedGrader, graded, nearest, opened

DEFAULT = YES_NO.template
QUESTION = "Is this document relevant to the query? Answer with one word: Yes or No."
ASKED = "Query: {query}\n\n{document}\n\n"
# What the queries of a collection look for, for the wording that says so.
TASKS = {
    "argkp": "The query is a key point of a debate. An argument is relevant if it makes this point.",
    "banking77": "The query names what a bank's customer wants. A message is relevant if its writer wants just that.",
    "clinc150": "The query describes what a user of an assistant wants. A message is relevant if its writer wants it.",
}
ANSWERS = "Does this document answer the query? Answer with one word: Yes or No."
STRICT = f"Documents about something that is only similar are not relevant.\n{QUESTION}"
PROMPTS = {
    "without the warning": "You judge whether a document is relevant to a search query.{instruction}\n\n"
    + ASKED
    + QUESTION,
    "does it answer": DEFAULT.replace(QUESTION, ANSWERS),
    "document first": DEFAULT.replace(ASKED, "{document}\n\nQuery: {query}\n\n"),
    "be strict": DEFAULT.replace(QUESTION, STRICT),
}


def ways(model: str, base_url: str, collection: str, concurrency: int) -> dict[str, Callable[[], BaseGrader]]:
    """Every way of asking, by its name."""

    def yes_or_no(template: str | None = None, instruction: str | None = None) -> BaseGrader:
        prompt = None if template is None else PromptTemplate(template)
        one_token = {"max_tokens": 1}
        return OpenAIGrader(
            model,
            base_url,
            instruction=instruction,
            prompt=prompt,
            llm_kwargs=one_token,
            timeout=3600,
            concurrency=concurrency,
        )

    llm = OpenAILike(model=model, api_base=base_url, api_key="none", is_chat_model=True, timeout=3600)
    task = {"with the task": lambda: yes_or_no(instruction=TASKS[collection])} if collection in TASKS else {}
    return {
        PROMPT: yes_or_no,
        **{name: (lambda template=template: yes_or_no(template)) for name, template in PROMPTS.items()},
        **task,
        "scale of four": lambda: ScaleGrader(llm, timeout=3600, concurrency=concurrency),
        "list of twenty": lambda: ListwiseGrader(llm, timeout=3600, concurrency=concurrency),
    }


def record(arguments: argparse.Namespace) -> None:
    """Ask in every way about the first documents of each query."""
    for spec in arguments.data:
        corpus = opened(spec, arguments.queries)
        asked = ways(arguments.model, arguments.base_url, Path(spec).name, arguments.concurrency)
        for name, make in asked.items():
            if arguments.only and name not in arguments.only:
                continue
            kept = Kept.load(arguments.grades, arguments.model, corpus.dataset.name, name)
            kept.about |= about(arguments)
            grader = RecordedGrader(kept, make())
            for row in range(len(corpus.queries)):
                grader.grade(corpus.bundle(row), [corpus.nodes[at] for at in nearest(corpus, row)[:K]])
            print(f"{spec} {name}: {len(kept.grades)} grades", flush=True)


def tables(arguments: argparse.Namespace) -> None:
    """Write the area under the ROC curve within a query, for the first half of the queries and for the second."""
    rows, told = [], set[str]()
    for name in (PROMPT, *PROMPTS, "with the task", "scale of four", "list of twenty"):
        halves: list[list[float]] = [[], []]
        cells, calls, seconds = [], 0.0, 0.0
        for spec in arguments.data:
            corpus = opened(spec, arguments.queries)
            kept = Kept.load(arguments.grades, arguments.model, corpus.dataset.name, name)
            told |= {", ".join(kept.about.values())} if kept.about else set()
            calls, seconds = calls + kept.cost.get("calls", 0), seconds + kept.cost.get("seconds", 0)
            areas: list[list[float]] = [[], []]
            for row in range(len(corpus.queries)):
                grades, relevant = graded(corpus, kept, row)
                there = ~np.isnan(grades)
                if there.sum() >= K // 2 and 0 < relevant[there].sum() < there.sum():
                    areas[row % 2].append(area_under_roc(grades[there & relevant], grades[there & ~relevant]))
            cells += [f"{np.mean(one):.2f} ({len(one)})" if one else "" for one in areas]
            for half, one in zip(halves, areas, strict=True):
                half += [float(np.mean(one))] if one else []
        if any(halves):
            means = [f"{np.mean(half):.3f}" if half else "" for half in halves]
            rows.append([name.replace("_", " "), *cells, *means, f"{seconds / calls:.1f}" if calls else ""])
    titles = [f"{Path(spec).name}, {half}" for spec in arguments.data for half in ("chosen by", "apart")]
    data = " ".join(f"data/{Path(spec).name}" for spec in arguments.data)
    text = "\n\n".join(
        [
            f"# How {arguments.model} is asked",
            f"Area under the ROC curve within a query, over the first {K} documents, with the number of queries that "
            "have relevant and other documents among them. A wording would be chosen by every second query; the others "
            f"are reported apart. Recorded with: {'; '.join(sorted(told))}. Made from `grades/` without a model by "
            f"`python -m results.wordings tables {data} --model {arguments.model} --queries {arguments.queries}`.",
            table(["asked", *titles, "mean, chosen by", "mean, apart", "seconds a call"], rows),
        ]
    )
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def main() -> None:
    """Record or measure."""
    parser, recording = command(__doc__, record, tables, 10)
    recording.add_argument("--only", nargs="*", help="ways of asking; all unless you say")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
