"""One query's way: embed, search, grade, refine, search again. For whoever changes what happens to a query.

- `pipeline` tells it from the first line to the last.
- Its steps: `grading`, where grades come from; `moving`, which refines by them; `ranking`, what the refined search is
  worth: what of it is graded next, the final order, and whether anything answers.
- What it carries: `queries` says what a query may bring, and embeds it; `feedback` is what was graded so far.
- `remembering` finds what was graded before, lets similar queries lend, and keeps the new.
- `decomposing` splits a query that asks several things, and fuses what its parts find.
- `selecting` selects every node that belongs to a query, by the `evidence` of grades and ranking.
- `calibrating` has the teacher grade what people have judged.
- At its beginning: `arguments` says what a retriever may be made with, `index` takes over a `VectorStoreIndex`.
- At its end: `events` and `notes` tell what happened.
"""
