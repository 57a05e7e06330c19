"""The options of all commands that search the user's own collection, each written down once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

import llama_index_refine
from llama_index_refine.commands.rows import digest_of
from llama_index_refine.commands.teacher import LLMOptions, server_url

if TYPE_CHECKING:
    from llama_index_refine.graders.base import BaseGrader
    from llama_index_refine.retriever import RefinedRetriever

EmbedBaseUrl = Annotated[
    str | None,
    typer.Option(help="The server of openai:NAME. Its address ends in /v1.", show_default="OPENAI_BASE_URL, or OpenAI"),
]
OutFile = Annotated[
    Path,
    typer.Option(
        help="File for the rows, .jsonl or .csv. Rows that it has already are not made again.", show_default=False
    ),
]


@dataclass(frozen=True, kw_only=True)
class CollectionOptions:
    """Which collection is searched, what embedded it, and how it is refined."""

    collection: Annotated[str, typer.Option(help="The collection.", show_default=False)]
    url: Annotated[
        str, typer.Option(help="Address of the Qdrant server. The port is 6333 if you give neither port nor path.")
    ] = "http://localhost:6333"
    api_key: Annotated[
        str | None,
        typer.Option(help="Qdrant's key. Better set the variable.", envvar="QDRANT_API_KEY", show_envvar=True),
    ] = None
    path: Annotated[
        Path | None, typer.Option(help="Folder of a local Qdrant, instead of a server.", show_default=False)
    ] = None
    text_key: Annotated[
        str | None, typer.Option(help="Payload field with the text.", show_default="as LlamaIndex writes it")
    ] = None
    vector_name: Annotated[
        str | None, typer.Option(help="Name of the vector to search.", show_default="the only one")
    ] = None
    embed_model: Annotated[
        str,
        typer.Option(
            help="What embedded the collection: minilm, a SentenceTransformer's name or folder, or "
            "openai:NAME for a model on an OpenAI-compatible server."
        ),
    ] = "minilm"
    embed_base_url: EmbedBaseUrl = None
    instruction: Annotated[
        str | None, typer.Option(help="What the search is for, in a sentence for the LLM.", show_default=False)
    ] = None
    feedback_top_k: Annotated[int, typer.Option(min=2, help="Documents to grade for each query.")] = 20

    @contextmanager
    def opened(self, grader: BaseGrader | None, **kwargs: Any) -> Iterator[tuple[RefinedRetriever, Any]]:
        """Open the collection.

        :param grader: the teacher.
        :param kwargs: further arguments of `RefinedRetriever`.
        :return: a retriever, which raises what goes wrong unless told otherwise, and the client.
        :raises ValueError: there is no such collection, or it is not reached with these options.
        :raises ConnectionError: no server answers.
        """
        from llama_index_refine.commands.connection import check_collection, connect, plain_qdrant_errors

        with plain_qdrant_errors(self.url), closing(connect(self.url, self.api_key, self.path)) as client:
            check_collection(client, self.collection)
            # Torch takes seconds to import, which a mistyped name need not wait for.
            from llama_index_refine.commands.embedding import make_embed_model
            from llama_index_refine.retriever import RefinedRetriever

            retriever = RefinedRetriever.from_collection(
                client,
                self.collection,
                self.text_key,
                self.vector_name,
                embed_model=make_embed_model(self.embed_model, self.embed_base_url),
                grader=grader,
                feedback_top_k=self.feedback_top_k,
                **{"on_error": "raise", **kwargs},
            )
            yield retriever, client

    def run(self, llm: LLMOptions, grader: BaseGrader | None) -> dict[str, Any]:
        """Say what decides the rows that a command writes: the part that all commands share.

        :param llm: the LLM that the options name.
        :param grader: the teacher that was made of them.
        :return: what was named, by the options' names; without keys, and with digests for what may hold one.
        """
        from llama_index_refine.commands.connection import address
        from llama_index_refine.evaluation.embeddings import files_of

        here = None if self.path is None else str(self.path.resolve())
        served = self.embed_model.startswith("openai:")
        return {
            "version": llama_index_refine.__version__,
            "--collection": self.collection,
            "--url": _without_keys(address(self.url)) if here is None else None,
            "--path": here,
            "--text-key": self.text_key,
            "--vector-name": self.vector_name,
            "--embed-model": self.embed_model,
            "--embed-base-url": _without_keys(server_url(self.embed_base_url)) if served else None,
            "the files of --embed-model": digest_of(files) if (files := files_of(self.embed_model)) else None,
            "--llm-base-url": _without_keys(server_url(llm.llm_base_url)) if grader else None,
            "--llm-model": llm.model() if grader else None,
            "--llm-kwargs": digest_of(repr(sorted(llm.kwargs().items()))) if grader and llm.kwargs() else None,
            "--instruction": self.instruction,
            "--feedback-top-k": self.feedback_top_k,
            "the teacher": digest_of(grader.fingerprint()) if grader else None,
        }


def takes(*groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of dataclasses, which it gets, filled in, as its first arguments.

    :param groups: the dataclasses; each field is annotated as Typer wants it. An option that the command has of its own
        stands for the group's of the same name.
    :return: a decorator for the command.
    """

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(groups) :]
        shared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=get_type_hints(group, include_extras=True)[field.name],
            )
            for group in groups
            for field in fields(group)
            if field.name not in {parameter.name for parameter in own}
        ]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *shared]]

        @wraps(command)
        def run(**given: Any) -> None:
            filled = [group(**{field.name: given[field.name] for field in fields(group)}) for group in groups]
            command(*filled, **{parameter.name: given[parameter.name] for parameter in own})

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return with_options


def _without_keys(url: str | None) -> str | None:
    """Leave out of an address what may be a key, and keep a digest that tells whether it is another."""
    if url is None or not {"@", "?"} & set(url):
        return url
    return f"{url.partition('?')[0].rpartition('@')[2]} ({digest_of(url)})"
