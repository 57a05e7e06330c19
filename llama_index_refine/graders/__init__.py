"""Teachers, one a file.

For users, who find most of them in `llama_index_refine` as well:

- `llm` asks yes or no of a LlamaIndex LLM, `openai` of a server that speaks OpenAI's protocol, `scale` asks for a mark
  by a rubric, `listwise` asks about all nodes at once.
- `cross_encoder` and `postprocessor` grade with rerankers, whose scales `rerankers` knows.
- `feedback` has what people said.
- `average`, `cascade` and `consistency` make one teacher of several, `cache` remembers grades.
- `account` says what a query may spend.

For authors of a teacher: `base` is the interface, `pointwise` and `combining` are the two kinds with most of the work
done, `chat` asks a model, `reading` reads its answer, `account` is charged. `asking` is how all that works.
"""
