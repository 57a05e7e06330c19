"""What is searched for, one kind of vector a file. For whoever adds a kind.

`base` says what a kind has to know: how its query is written for Qdrant, how what points have stored becomes rows that
a refiner moves a query among, and how the refined row becomes a query again. `dense` is one vector, `sparse` one of
weighed terms, `hybrid` both of them as one, `matrices` a multivector. `terms` makes rows of sparse vectors, `linear` an
inner product of any distance between dense ones.
"""
