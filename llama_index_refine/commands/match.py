"""The command `match`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import llama_index_refine
from llama_index_refine.commands.classify import Finished, read_texts
from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import EmbedBaseUrl, OutFile
from llama_index_refine.commands.progress import progress_on
from llama_index_refine.commands.rows import Rows, digest_of

if TYPE_CHECKING:
    from llama_index.core.schema import BaseNode

    from llama_index_refine.selection import Selection

COLUMNS = ("query", "id", "probability", "text")


def match(
    selection: Annotated[
        list[Path],
        typer.Option(help="File of a selection, from `select --keep`. May be repeated.", show_default=False),
    ],
    texts: Annotated[
        Path,
        typer.Option(help="New texts, one a line, or the column text of a .csv file.", show_default=False),
    ],
    out: OutFile,
    embed_model: Annotated[
        str,
        typer.Option(
            help="What embedded the collection: minilm, a SentenceTransformer's name or folder, or "
            "openai:NAME for a model on an OpenAI-compatible server."
        ),
    ] = "minilm",
    embed_base_url: EmbedBaseUrl = None,
) -> None:
    """Write those of your new texts that belong to what was selected for, with the probability; no LLM is asked."""
    console = Console(highlight=False)
    with plain_errors() as warned, progress_on(console) as bars:
        from llama_index_refine.commands.embedding import make_embed_model
        from llama_index_refine.selection import Selection

        if missing := next((file for file in selection if not file.is_file()), None):
            raise ValueError(f"--selection {missing} is not a file")
        total, items = read_texts(texts)
        digests = {f"the selection {file.name}": digest_of(file.read_bytes()) for file in selection}
        model = {"version": llama_index_refine.__version__, "--embed-model": embed_model}
        rows = Rows(out, COLUMNS, {**model, "--texts": str(texts.resolve()), **digests})
        finished = Finished.of(rows)
        embedding = make_embed_model(embed_model, embed_base_url)
        standing = [Selection.load(file, embedding) for file in selection]
        bar = bars.add_task("Matching", total=total)
        for batch, left in finished.batches(items, partial(bars.advance, bar)):
            new = {name: node for name, node in batch if name in left}
            vectors = embedding.get_text_embedding_batch([node.get_content() for node in new.values()])
            for node, vector in zip(new.values(), vectors, strict=True):
                node.embedding = vector
            note = {name: digest_of(node.get_content()) for name, node in new.items()}
            rows.add([row for one in standing for row in _rows(one, new)], note)
        finished.check(rows, "--texts")
    console.print(f"{sum(map(len, rows.done))} texts read, those that match are in {out}", soft_wrap=True, markup=False)
    tell(console, warned)


def _rows(selection: Selection, named: dict[str, BaseNode]) -> list[dict[str, Any]]:
    names = {node.node_id: name for name, node in named.items()}
    return [
        {
            "query": selection.refinement.query_str,
            "id": names[entry.node_id],
            "probability": round(float(entry.score or 0.0), 6),
            "text": entry.node.get_content(),
        }
        for entry in selection.match(list(named.values()))
    ]
