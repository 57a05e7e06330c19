"""A refined retriever as an agent's tool."""

from __future__ import annotations

import json

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from llama_index.llms.openai import OpenAI

from tests.chat_server import Question, Reply
from tests.llama_index.conftest import subjects
from tests.small_index import QUERY


async def test_function_agent_over_a_chat_server(retriever, chat_server):
    def reply(question: Question) -> Reply:
        if question.body["messages"][-1]["role"] == "tool":
            return Reply("Owls hunt.")
        return Reply(arguments={"input": QUERY})

    chat_server.reply = reply
    tool = RetrieverTool.from_defaults(retriever, name="library", description="knows animals")
    model = OpenAI(model="gpt-4o-mini", api_base=chat_server.url, api_key="none")
    agent = FunctionAgent(name="reader", tools=[tool], llm=model, streaming=False)
    handler = AgentWorkflow(agents=[agent], root_agent="reader").run(user_msg="do owls sleep at night?")
    results = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    assert str(await handler) == "Owls hunt."
    assert subjects(results[0].tool_output.raw_output) == ["owls"] * 4
    sent = json.dumps(chat_server.questions[-1].body["messages"])
    assert sent.count("the owl with") == 4
    assert "kept 0" not in sent


async def test_react_agent(retriever, llm):
    model = llm(
        f'Thought: I look it up.\nAction: library\nAction Input: {{"input": "{QUERY}"}}',
        "Thought: I can answer.\nAnswer: Owls hunt.",
    )
    tool = RetrieverTool.from_defaults(retriever, name="library", description="knows animals")
    response = await ReActAgent(tools=[tool], llm=model, streaming=False).run(user_msg="do owls sleep at night?")
    assert str(response) == "Owls hunt."
    assert model.prompts[1].count("the owl with") == 4


async def test_query_engine_tool(retriever, llm):
    engine = RetrieverQueryEngine.from_args(retriever, llm=llm("Owls do not."))
    output = await QueryEngineTool.from_defaults(engine, name="library", description="x").acall(QUERY)
    assert output.content == "Owls do not."
