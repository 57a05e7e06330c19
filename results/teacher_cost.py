"""What each teacher costs one query with 20 nodes to grade: calls and tokens, counted by the server that is asked.

    python -m results.teacher_cost

The documents have 100 words each. Tokens are those of LlamaIndex's default tokenizer, prompts with the schema of
structured output. The counts are the same on every machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

from llama_index.core.postprocessor.rankGPT_rerank import RankGPTRerank
from llama_index.core.schema import BaseNode, QueryBundle, TextNode
from llama_index.llms.openai import OpenAI

from llama_index_refine.graders.asking.showing import count_tokens
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.ensembles import AverageGrader, CascadeGrader, SelfConsistencyGrader
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.graders.listwise import ListwiseGrader
from llama_index_refine.graders.llm import LLMGrader, ScaleGrader
from llama_index_refine.graders.openai import OpenAIGrader
from llama_index_refine.graders.postprocessor import PostprocessorGrader
from tests.chat_server import ChatServer, Question, Reply, overlap

K = 20
QUERY = QueryBundle("how do cats purr when they are content")
WORDS = ("cats", "purr", "rain", "spring", "garden", "river", "letter", "window", "music", "winter", "bread", "stone")


def nodes() -> list[TextNode]:
    """Make the documents."""
    chance = random.Random(0)
    return [TextNode(id_=str(n), text=f"{n}: {' '.join(chance.choices(WORDS, k=99))}.") for n in range(K)]


class Cheap(BaseGrader):
    """A free teacher that is sure of 12 of 20 nodes."""

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> list[float | None]:
        return [0.5 if int(node.node_id) % 5 in (1, 3) else 0.9 for node in nodes]


class Meter:
    """Answers whatever is asked and counts tokens."""

    def __init__(self, server: ChatServer) -> None:
        self.server = server
        server.reply = self.reply
        self.reset()

    def reset(self) -> None:
        """Start over."""
        self.calls = self.prompt = self.completion = 0

    def reply(self, question: Question) -> Reply:
        """Answer in the form that is asked for."""
        answer = self.answer(question)
        form = question.body.get("tools") or question.body.get("response_format") or ""
        self.calls += 1
        self.prompt += count_tokens(question.prompt) + (count_tokens(json.dumps(form)) if form else 0)
        self.completion += count_tokens(json.dumps(answer.arguments) if answer.arguments else answer.text or "")
        return answer

    def answer(self, question: Question) -> Reply:
        """Word an answer."""
        if "RankGPT" in question.prompt:
            return Reply(" > ".join(f"[{number}]" for number in range(1, K + 1)))
        if len(question.documents) > 1:
            numbers = range(1, len(question.documents) + 1)
            return Reply(arguments={"verdicts": [{"document": number, "relevance": 5} for number in numbers]})
        return Reply("2", [{"2": 1.0}]) if "0 to 3" in question.prompt else overlap(question)


def teachers(url: str) -> Iterator[tuple[str, BaseGrader]]:
    """Make one of each."""
    llm = OpenAI(model="gpt-4o-mini", api_base=url, api_key="none")
    yield "LLMGrader", LLMGrader(llm)
    yield "OpenAIGrader", OpenAIGrader("gpt-4o-mini", url)
    yield "ScaleGrader", ScaleGrader(llm)
    yield "ListwiseGrader", ListwiseGrader(llm)
    yield "ListwiseGrader, both_orders", ListwiseGrader(llm, both_orders=True)
    yield "SelfConsistencyGrader(LLMGrader, n=3)", SelfConsistencyGrader(LLMGrader(llm), n=3)
    yield "AverageGrader([LLMGrader, ListwiseGrader])", AverageGrader([LLMGrader(llm), ListwiseGrader(llm)])
    yield "CascadeGrader, 12 of 20 sure at first", CascadeGrader([Cheap(), LLMGrader(llm)])
    judged = {QUERY.query_str: {str(number): 1.0 for number in range(5)}}
    yield "FeedbackGrader, 5 of 20 judged, LLMGrader", FeedbackGrader(judged, LLMGrader(llm))
    yield "PostprocessorGrader(RankGPTRerank)", PostprocessorGrader(RankGPTRerank(llm=llm))
    cached = CachedGrader(LLMGrader(llm))
    cached.grade(QUERY, nodes())
    yield "CachedGrader(LLMGrader), second time", cached


def main() -> None:
    server = ChatServer().start()
    meter = Meter(server)
    print(f"| teacher, K = {K} | calls | prompt tokens | answer tokens |\n|---|---|---|---|")
    for name, teacher in teachers(server.url):
        meter.reset()
        grades = teacher.grade(QUERY, nodes())
        assert None not in grades, name
        print(f"| {name} | {meter.calls} | {meter.prompt} | {meter.completion} |")
    server.stop()


if __name__ == "__main__":
    main()
