"""The benchmark: the command `bench`, and what its runs are made of.

- A run: `benchmark` is the whole, `measuring` one method on one corpus, `results` what is kept of it.
- What goes in: `loading` finds data sets, `datasets` those in folders and `named` those with a name; `corpus` makes one
  ready, with `embeddings` by name and `teachers` from labels; `cache` keeps what is expensive. `peers` are the methods.
- What comes out: `metrics`, `report` and `plots`.
"""
