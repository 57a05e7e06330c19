"""The command `mcp`: a collection's tools, served by the Model Context Protocol."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

import llama_index_refine
from llama_index_refine.commands.errors import plain_errors, tell
from llama_index_refine.commands.options import CollectionOptions, takes
from llama_index_refine.commands.teacher import LLMOptions

if TYPE_CHECKING:
    from llama_index.core.tools import FunctionTool
    from mcp.server.lowlevel import Server

    from llama_index_refine.memory.memory import RefinementMemory

PATH = "/mcp"

logger = logging.getLogger(__name__)


@takes(CollectionOptions, LLMOptions)
def mcp(
    collection: CollectionOptions,
    llm: LLMOptions,
    about: Annotated[
        str | None, typer.Option(help="What the collection holds, in a sentence for the agent.", show_default=False)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Another collection, to keep grades and judgements in. It is made when first needed. Agents then "
            "get the tool judge.",
            show_default="no memory",
        ),
    ] = None,
    transport: Annotated[
        Literal["stdio", "http"],
        typer.Option(help="stdio for clients that start the server, http for those that call it."),
    ] = "stdio",
    host: Annotated[
        str, typer.Option(help="Address to listen on by http. Whoever reaches it can read the collection.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on by http; 0 for a free one.")] = 8000,
) -> None:
    """Serve your collection to agents by the Model Context Protocol: the tools find, find_all, classify and judge."""
    # Standard output belongs to the protocol.
    console = Console(stderr=True, highlight=False)
    with ExitStack() as open_things:
        with plain_errors() as warned:
            require_mcp()
            from anyio import run

            from llama_index_refine.commands.connection import plain_qdrant_errors

            grader = llm.needed_grader(collection.instruction, on_error="ignore")
            retriever, client = open_things.enter_context(collection.opened(grader, on_error="fallback"))
            if memory is not None:
                retriever.memory = open_memory(client, memory, collection.collection)
            tools = retriever.as_tools(about=about)
            server = make_server(tools, collection.collection, partial(plain_qdrant_errors, collection.url))
            listening = None
            if transport == "http":
                listening = open_things.enter_context(listen(host, port))
                console.print(f"Serving {url_of(listening)}; Ctrl-C ends.", soft_wrap=True)
            tell(console, warned)
        run(serve_stdio, server) if listening is None else run(serve_http, server, host, listening)


def require_mcp() -> None:
    """Check that the extra is there.

    :raises ImportError: the protocol's SDK is not installed, or is an older one.
    """
    try:
        import mcp_types  # noqa: F401
    except ImportError as error:
        raise ImportError('the server needs: pip install "llama-index-refine[mcp]"') from error


def open_memory(client: Any, name: str, searched: str) -> RefinementMemory:
    """Open the memory.

    :param client: where it is.
    :param name: its collection.
    :param searched: the collection that is searched.
    :return: the memory.
    :raises ValueError: they are the same.
    """
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from llama_index_refine.memory.memory import RefinementMemory

    if name == searched:
        raise ValueError(f"--memory must be another collection: {name!r} is searched")
    return RefinementMemory(QdrantVectorStore(name, client=client))


def make_server(
    tools: Sequence[FunctionTool], name: str, plainly: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Server[Any]:
    """Make a server of LlamaIndex's tools.

    :param tools: the tools.
    :param name: what the server is called.
    :param plainly: turns errors of what is behind the tools into ones of a line.
    :return: the server, which answers what goes wrong as the tool's error.
    """
    import mcp_types as types
    from mcp.server.lowlevel import Server

    by_name = {tool.metadata.get_name(): tool for tool in tools}

    def described(tool: FunctionTool) -> types.Tool:
        schema: Any = tool.metadata.fn_schema
        return types.Tool(
            name=tool.metadata.get_name(),
            description=tool.metadata.description,
            input_schema=tool.metadata.get_parameters_dict(),
            annotations=types.ToolAnnotations(
                read_only_hint=not schema.writes, destructive_hint=False, open_world_hint=False
            ),
        )

    def answer(text: str, is_error: bool = False) -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=is_error)

    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=list(map(described, tools)))

    async def call_tool(_: Any, asked: types.CallToolRequestParams) -> types.CallToolResult:
        if asked.name not in by_name:
            return answer(f"there is no tool {asked.name!r}; there are {', '.join(by_name)}", is_error=True)
        try:
            with plainly():
                output = await by_name[asked.name].acall(**(asked.arguments or {}))
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            return answer(str(error), is_error=True)
        except Exception as error:
            # Its own words may repeat a key.
            logger.warning("%s failed: %s", asked.name, type(error).__name__)
            return answer(f"{asked.name} failed: {type(error).__name__}", is_error=True)
        return answer(output.content)

    version = llama_index_refine.__version__
    return Server(name, version=version, on_list_tools=list_tools, on_call_tool=call_tool)


async def serve_stdio(server: Server[Any]) -> None:
    """Serve the client that started this process, until it closes standard input."""
    from mcp.server.stdio import stdio_server

    # While it runs, whatever else is printed goes to standard error.
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


def listen(host: str, port: int) -> socket.socket:
    """Take a port.

    :param host: the address to listen on.
    :param port: the port, 0 for a free one.
    :return: the socket.
    :raises OSError: it is taken, or there is no such address.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"--host {host} --port {port} cannot be listened on: {error.strerror or error}") from error


def url_of(listening: socket.socket) -> str:
    """Say where clients find a server."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"


async def serve_http(server: Server[Any], host: str, listening: socket.socket) -> None:
    """Serve clients over streamable HTTP, until Ctrl-C.

    :param server: the server.
    :param host: the address; on loopback, requests of pages from elsewhere are refused.
    :param listening: the socket.
    """
    from uvicorn import Config
    from uvicorn import Server as HTTPServer

    web = server.streamable_http_app(streamable_http_path=PATH, host=host)
    await HTTPServer(Config(web, log_config=None, access_log=False)).serve([listening])
