"""Where to cut a ranking, on arrays alone: for whoever changes what a selection is or how sure it has to be.

`relevance` says how likely documents are relevant and `teacher` how teachers err; `cut` what to expect of every cut;
`certificate` what documents drawn at random show of it, by the `bounds` on how many of a set are relevant.
"""
