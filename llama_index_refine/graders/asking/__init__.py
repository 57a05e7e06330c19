"""How a teacher asks an LLM. For whoever mends what a server or a model does; authors of a teacher meet what is above.

- On the way out: `prompts` has the questions, `text` cleans, cuts and fences documents, `showing` puts images into
  them, `options` is what is asked for beside the answer.
- The call: `calls` is the gate, `pace` and `limits` say how many go through it, `blocking` joins threads and loops.
- What comes back: `errors` reads what an error says, and `failures` is the one table of what is done about it; `answer`
  finds the answer in a reply.
- What an answer claims: `claims` weighs claims against each other; `yes_no`, with the `words` of thirty languages,
  `numbers` and `verdicts` read each its kind.
"""
