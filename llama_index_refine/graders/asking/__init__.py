"""How a teacher asks an LLM. For whoever mends what a server or a model does; authors of a teacher meet what is above.

- `grader` is what teachers that ask have in common, `question` one question on its way, `loop` the event loop for all.
- On the way out: `prompts` has the questions, `text` cleans, cuts and fences documents, `showing` puts images into
  them, `options` is what is asked for beside the answer.
- The call: `calls` is the gate, `pace` says how many go through it.
- What comes back: `errors` reads what an error says, `rules` and `failures` what that means; `reply` reads what a
  server sends, `answer` finds the answer in it, and `verdicts` reads those about several documents.
"""
