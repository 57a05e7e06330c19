"""Where to cut a ranking, on arrays alone: for whoever changes what a selection is or how sure it has to be.

`cut` says what to expect of every cut, by the probabilities of `refining.relevance`; `certificate` what documents drawn
at random show of it, by the `bounds` on how many of a set are relevant; `people` what labels show of a teacher.
"""
