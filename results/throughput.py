"""How near a thousand queries in flight come to what the concurrency limit allows, and whether memory stays flat.

    python -m results.throughput

Run alone on a machine with two free cores: one for the server, which answers in 50 ms, one for the queries. The best
possible time is calls x delay / concurrency.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama_index.core.schema import QueryBundle, TextNode
from llama_index.llms.openai import OpenAI
from openai import AsyncOpenAI, DefaultAioHttpClient

from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.graders.llm import LLMGrader
from llama_index_refine.graders.openai import OpenAIGrader

ROOT = Path(__file__).parent.parent


@contextmanager
def server(delay: float, failing: float) -> Iterator[str]:
    """Run the tests' chat completions server as a process of its own."""
    command = [sys.executable, "-m", "tests.chat_server", "--delay", str(delay), "--failing", str(failing)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def memory() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Watch:
    """Time, processor time and memory while queries run."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    async def over(self, work: Sequence[Awaitable[Any]]) -> list[Any]:
        """Await everything at once and watch."""
        watching = asyncio.create_task(self._sample())
        started, cpu = time.perf_counter(), time.process_time()
        results = await asyncio.gather(*work)
        self.seconds, self.cpu = time.perf_counter() - started, time.process_time() - cpu
        watching.cancel()
        return results

    async def _sample(self) -> None:
        while True:
            self.samples.append(memory())
            await asyncio.sleep(0.25)

    def row(self, calls: int, possible_seconds: float) -> str:
        tenth = len(self.samples) // 10
        growth = max(self.samples[tenth:]) - self.samples[tenth]
        return (
            f"{possible_seconds / self.seconds:.1%} | {1000 * self.cpu / calls:.2f} ms | "
            f"{self.samples[tenth]:.0f} MB | {growth:+.0f} MB |"
        )


async def graded(grader: BaseGrader, arguments: argparse.Namespace) -> str:
    """Grade for all queries at the same time. :return: the rest of the table's row."""
    nodes = [TextNode(text=f"cats purr in document {number}") for number in range(arguments.nodes)]
    await grader.agrade(QueryBundle("how do cats purr"), nodes)
    watch = Watch()
    queries = (QueryBundle(f"how do cats purr {number}") for number in range(arguments.queries))
    answers = await watch.over([grader.agrade(query, nodes) for query in queries])
    calls = arguments.queries * arguments.nodes
    share = sum(grade is not None for grades in answers for grade in grades) / calls
    return f"{len(answers)} | {share:.1%} | {watch.row(calls, calls * arguments.delay / arguments.concurrency)}"


async def client_alone(url: str, arguments: argparse.Namespace) -> str:
    """Make as many calls with nothing but the openai client and a semaphore."""
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    limit = asyncio.Semaphore(arguments.concurrency)

    async def call() -> None:
        async with limit:
            await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "Query: cats"}], logprobs=True, top_logprobs=20
            )

    watch = Watch()
    calls = arguments.queries * arguments.nodes
    await watch.over([call() for _ in range(calls)])
    await client.close()
    return f"- | - | {watch.row(calls, calls * arguments.delay / arguments.concurrency)}"


def teachers(url: str, concurrency: int) -> dict[str, BaseGrader]:
    """Make the teachers; the aiohttp transport where `pip install httpx-aiohttp` was done."""
    common: dict[str, Any] = {"model": "gpt-4o-mini", "api_base": url, "api_key": "none"}
    made: dict[str, BaseGrader] = {
        "OpenAIGrader": OpenAIGrader("gpt-4o-mini", url, concurrency=concurrency),
        "LLMGrader": LLMGrader(OpenAI(**common), concurrency=concurrency),
    }
    if find_spec("httpx_aiohttp"):
        llm = OpenAI(**common, async_http_client=DefaultAioHttpClient())
        made["LLMGrader, aiohttp transport"] = LLMGrader(llm, concurrency=concurrency)
    return made


async def table(arguments: argparse.Namespace) -> None:
    """Print a row for each teacher, on a server that always answers and on one that often fails."""
    with server(arguments.delay, 0.0) as url:
        print(f"| openai client alone | 0% | {await client_alone(url, arguments)}", flush=True)
    for failing in (0.0, 0.2):
        with server(arguments.delay, failing) as url:
            for name, grader in teachers(url, arguments.concurrency).items():
                print(f"| {name} | {failing:.0%} | {await graded(grader, arguments)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds until each answer")
    parser.add_argument("--concurrency", type=int, default=16)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print(", ".join(f"{name} {value}" for name, value in vars(arguments).items()), end="\n\n")
    columns = (
        *("teacher", "failing", "queries returned", "nodes graded", "of the possible throughput", "CPU a call"),
        *("memory after a tenth", "growth from there"),
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    asyncio.run(table(arguments))


if __name__ == "__main__":
    main()
