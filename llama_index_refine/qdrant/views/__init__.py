"""What is searched for, one kind of vector a file. For whoever adds a kind.

`dense` says what a kind has to know: how its query is written for Qdrant, how what points have stored becomes rows that
a refiner moves a query among, how the refined row becomes a query again, and how scores and thresholds are carried over
to it. It is the plainest kind itself: one vector. `sparse` is one of weighed terms, `hybrid` both of them as one,
`matrices` a multivector. `boosted` is any of them with a formula by which it ranks.
"""
