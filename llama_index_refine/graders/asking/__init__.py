"""How a teacher asks an LLM. For whoever mends what a server or a model does; authors of a teacher meet what is above.

- `grader` is what teachers that ask have in common, `question` one question on its way, `loop` the event loop for all.
- On the way out: `prompts` has the questions, `showing` cleans, cuts and fences documents and puts images into them;
  `question` also knows what is asked for beside the answer.
- The call: `calls` is the gate, `pace` says how many go through it.
- What comes back: `errors` reads what an error says, `failures` what that means; `answer` reads what a server sends,
  and finds the answer in it.
"""
