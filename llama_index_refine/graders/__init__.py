"""Teachers, one kind a file.

For users, who find most of them in `llama_index_refine` as well:

- `llm` asks yes or no of a LlamaIndex LLM, or for a mark by a rubric, `openai` asks a server that speaks OpenAI's
  protocol, `listwise` asks about all nodes at once.
- `rerank`, `postprocessor` and `cross_encoder` grade with rerankers; `scoring` knows what their scores mean.
- `feedback` has what people said.
- `ensembles` make one teacher of several, `cache` remembers grades.
- `account` says what a query may spend.

For authors of a teacher: `base` is the interface, `llm` and `combining` have the two kinds with most of the work done,
`chat` asks a model, `reading` reads its answer, `account` is charged. `asking` is how all that works.
"""
