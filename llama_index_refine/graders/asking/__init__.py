"""How a teacher asks an LLM: calls, limits, failures, prompts, and what of a reply is the answer."""
