"""Any reranker that is served: one request for all nodes, whose answer is a score for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.schema import BaseNode, QueryBundle
from typing_extensions import Unpack

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.asking.answer import Answer, Unreadable
from llama_index_refine.graders.asking.errors import get
from llama_index_refine.graders.asking.grader import AskingGrader, AskingOptions
from llama_index_refine.graders.asking.showing import Shown, cut
from llama_index_refine.graders.base import Grades, digest
from llama_index_refine.graders.chat import Chat
from llama_index_refine.graders.scoring import Scale, Scoring

_QUERY = PromptTemplate("{query}")
# Where a server may mean that it wants another address or form; 200 is one with a web page for every address.
_ANOTHER_WAY = (200, 400, 404, 405, 422)


class RerankGrader(AskingGrader):
    """Grades with a reranker behind a URL: Jina, Cohere, vLLM, SGLang, llama.cpp, text-embeddings-inference and others.

    All nodes go into one request. The grader tries which address the server has: `base_url` followed by /rerank or by
    /v1/rerank, or /rerank in the form of text-embeddings-inference. It reads texts: nodes with images get no grade. A
    node gets None if the answer leaves it out, has it twice or gives it no number. If the server refuses a request
    because of one text, the grader asks about each text by itself.

    :param model: the model's name on the server.
    :param base_url: the server's address, with /v1 at its end if it has one.
    :param api_key: the key; None for none.
    :param instruction: what the search is for, in a sentence, for servers that take an `instruction` or `instruct`;
        None for none. A server that refuses it is asked without.
    :param prompt: how the query is written, with the variables query and instruction; None for the query alone.
    :param scale: what the scores are on: (worst, best), "logit", "rank" or a function from a score to [0, 1]. None lets
        the first scores decide, once: (0, 1) if all lie there, otherwise "logit".
    :param asking: how documents are shown, and how the questions are asked: see `AskingOptions`. `llm_kwargs` are
        further fields of the request.
    :raises ValueError: an argument out of its range.
    """

    needs = frozenset({"query"})

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key: str | None = None,
        instruction: str | None = None,
        prompt: BasePromptTemplate | None = None,
        scale: Scale | None = None,
        **asking: Unpack[AskingOptions],
    ) -> None:
        if not model or not base_url:
            raise ValueError(f"model and base_url must name a model and its server; got {model!r} and {base_url!r}")
        optional = dict.fromkeys(("instruction", "instruct"), instruction) if instruction else {}
        chat = _RerankServer(model, base_url, api_key)
        super().__init__(chat, prompt or _QUERY, instruction, optional, **asking)
        self._scoring = Scoring(model, scale)

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`."""
        return [*super().decides(), self._scoring.decides()]

    async def _grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        shown = self._scoring.shown(query, nodes)
        scores = dict(zip((node.node_id for node in shown), await super()._grade(query, shown), strict=True))
        best = sorted(((score, node_id) for node_id, score in scores.items() if score is not None), reverse=True)
        grades = self._scoring.grades(query, nodes, {node_id: score for score, node_id in best})
        given = [scores[node.node_id] is not None for node in nodes]
        return Grades(grade if has_score else None for grade, has_score in zip(grades, given, strict=True))

    def _batches(self, documents: Sequence[Shown], places: Sequence[int]) -> list[Sequence[int]]:
        return [places] if places else []

    def _messages(self, query: Shown, documents: Sequence[Shown]) -> list[ChatMessage]:
        texts = (cut(shown.text, self._max_document_tokens) for shown in documents)
        return [*super()._messages(query, documents), *map(ChatMessage, texts)]

    def _read(self, answer: Answer, count: int) -> list[float | None]:
        found = scores_of(answer.scores, count)
        if missing := found.count(None):
            reason = (
                f"the reranker gave {missing} of {count} documents no score, two scores, or one that is not a number"
            )
            if missing == count:
                raise Unreadable(reason)
            self._calls.tell(reason, current_account())
        return found


def scores_of(results: Sequence[Any], count: int) -> list[float | None]:
    """Read the score of each document.

    :param results: what the server gave: mappings with an index, from 0, and a relevance_score or a score.
    :param count: how many documents there are.
    :return: one score a document, None where there is none, several, or one that is not a finite number.
    """
    given: list[list[float | None]] = [[] for _ in range(count)]
    for result in results:
        index, score = get(result, "index"), get(result, "relevance_score")
        score = get(result, "score") if score is None else score
        if type(index) is int and 0 <= index < count:
            given[index].append(float(score) if type(score) in (int, float) and -1e300 < score < 1e300 else None)
    return [each[0] if len(each) == 1 else None for each in given]


class _RerankServer(Chat):
    """The messages are the query and the documents, the options further fields of the request."""

    def __init__(self, model: str, base_url: str, api_key: str | None) -> None:
        self._model = model
        self._base_url = base_url
        self._api_key = api_key
        base = base_url.rstrip("/")
        root = base.removesuffix("/v1").removesuffix("/v2")
        ways = [(f"{base}/rerank", "documents"), (f"{root}/v1/rerank", "documents"), (f"{root}/rerank", "texts")]
        self._ways = list(dict.fromkeys(ways))

    async def ask(self, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> Answer:
        """See `Chat.ask`. Each further address or form that is tried is another call.

        :raises Unreadable: the server answers, and with no scores.
        """
        query, *documents = (message.content or "" for message in messages)
        client = self._of_this_loop(self._api_key, self._client)
        refusals: list[httpx.Response] = []
        for address, field in self._ways:
            if refusals and not current_account().open_call():
                break
            # What is too long for the model is cut by servers that have the second form only where they are told to.
            texts = {field: documents, "truncate": True} if field == "texts" else {field: documents}
            body = {"model": self._model, "query": query, **texts, **options}
            response: httpx.Response = await client.post(address, json=body)
            if (answer := _ranking(response)) is not None:
                self._ways = [(address, field)]
                return answer
            if response.status_code not in _ANOTHER_WAY:
                response.raise_for_status()
            refusals.append(response)
        next((one for one in refusals if one.status_code not in (404, 405)), refusals[0]).raise_for_status()
        raise Unreadable("a call returned no scores: check the base_url")

    def takes_images(self) -> bool:
        """See `Chat.takes_images`."""
        return False

    def fingerprint(self) -> str:
        """See `Chat.fingerprint`. An address may hold a password."""
        return f"rerank {self._model} {digest(self._base_url)}"

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        return httpx.AsyncClient(headers=headers, timeout=None)


def _ranking(response: httpx.Response) -> Answer | None:
    """Read a list of results, or an object that has one; None where the response is neither."""
    try:
        body = response.json() if response.is_success else None
    except (ValueError, RecursionError):
        return None
    results = body if isinstance(body, list) else get(body, "results") or get(body, "data")
    if not isinstance(results, list):
        return None
    usage = get(body, "usage")
    return Answer("", scores=results).counted(get(usage, "total_tokens") or get(usage, "prompt_tokens"), 0)
