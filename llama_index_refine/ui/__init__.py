"""The playground: a local page on which to watch a query being refined.

For users: `launch`. Behind it, `page` is the page, `comparison` answers a query three ways, and `cards` shows the
answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradio import Blocks

    from llama_index_refine.graders.base import BaseGrader
    from llama_index_refine.retriever import RefinedRetriever


def require_gradio() -> None:
    """Check that the extra is there.

    :raises ImportError: gradio is not installed.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError('the playground needs: pip install "llama-index-refine[ui]"') from error


def launch(
    retriever: RefinedRetriever,
    teachers: Mapping[str, BaseGrader] | None = None,
    queries: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = True,
    block: bool = True,
) -> Blocks:
    """Open the playground on a retriever's collection.

    The page sends nothing out and loads nothing from outside. Whoever can reach it can read the collection and spend on
    the teacher, so it listens on this machine only, unless told otherwise.

    :param retriever: its collection, embedding model and filters are used; its other settings are the first shown.
    :param teachers: teachers to choose from, by the name to show; None for the retriever's own. Thumbs alone are always
        offered too.
    :param queries: queries to offer.
    :param host: the address to listen on.
    :param port: the port; None for a free one from 7860 on.
    :param open_browser: open the page in the browser.
    :param block: wait until the page is stopped with Ctrl-C; False returns at once.
    :return: the page; `local_url` is its address, `close()` stops it.
    :raises ImportError: gradio is not installed.
    :raises OSError: the port is taken.
    """
    require_gradio()
    from llama_index_refine.ui.comparison import Playground
    from llama_index_refine.ui.page import build, css, theme

    offered = {"the retriever's own": retriever.grader} if teachers is None else teachers
    page = build(Playground(retriever, offered), queries)
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        theme=theme(),
        css=css(),
    )
    if block:
        page.block_thread()
    return page
