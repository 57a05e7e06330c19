"""One query's way: search, grade, refine, search again. For whoever changes what happens to a query.

- `loop` says in which order, `running` performs it, for one query or for many at a time.
- Its steps: `embedding`, `grading`, `lessons` (which refines, by what `moving` makes of the grades); `next_grades` says
  what is graded next and whether that is worth it, `fusion` makes the final order.
- For a selection: `selects` has the ways to call it, `selecting` says in which order, `target` what is asked of it;
  `relevance` gathers what is known of a query's documents, `ordering` puts them in order.
- For a memory: `remembering` finds what was graded before, lets similar queries lend, and keeps the new; `judges` has
  the ways to keep what people say.
- For several questions in one: `decomposing` splits a query and fuses what its parts find.
- At its beginning: `arguments` says what a retriever may be made with.
- What it carries: `feedback` is what was graded so far, `examples` what the query itself brought, `records` each
  teacher's standing.
- At its ends: `outcomes` hands over what came of it, `index` takes over a `VectorStoreIndex`, `events` and `notes` tell
  what happened.
"""
