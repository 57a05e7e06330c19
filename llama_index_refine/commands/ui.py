"""The command `ui`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.console import Console

from llama_index_refine.commands.errors import plain_errors
from llama_index_refine.commands.options import CollectionOptions, takes
from llama_index_refine.commands.progress import progress_on
from llama_index_refine.commands.teacher import LLMOptions

SAMPLE_QUERIES = 12


@takes(CollectionOptions, LLMOptions)
def ui(
    options: CollectionOptions,
    llm: LLMOptions,
    collection: Annotated[str | None, typer.Option(help="Your collection.", show_default="the demo's sample")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Whoever reaches the page can read the collection.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="free one from 7860 on")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Open a page to watch queries being refined: search, reranked and refined side by side, with thumbs."""
    console = Console(highlight=False)
    with plain_errors(), ExitStack() as open_things:
        from llama_index_refine.ui import launch, require_gradio

        require_gradio()
        grader = llm.grader(options.instruction)
        teachers = {} if grader is None else {"the LLM": grader}
        queries: Sequence[str] = ()
        if collection is None:
            # The model comes with a package: nothing is fetched, nor asked for.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            from llama_index_refine.demo.sample import load_sample, open_sample

            with progress_on(console) as bars:
                embedding = bars.add_task("Embedding the sample", total=None)
                retriever = open_sample(
                    path=options.path, advance=lambda done, total: bars.update(embedding, advance=done, total=total)
                )
            teachers |= {"the sample's labels": retriever.grader}
            queries = sorted((query.text for query in load_sample().queries), key=len)[:SAMPLE_QUERIES]
            retriever.feedback_top_k = options.feedback_top_k
        else:
            with console.status("Opening the collection"):
                retriever, _ = open_things.enter_context(options.opened(grader, on_error="fallback"))
        page = launch(retriever, teachers, queries, host=host, port=port, open_browser=browser, block=False)
        console.print(f"Open {page.local_url} in your browser; Ctrl-C ends.")
        page.block_thread()
