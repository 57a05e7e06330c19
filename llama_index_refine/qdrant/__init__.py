"""The collection: what is asked of Qdrant, and how.

For the rooms above: `collection` is all that a retrieval asks, `options` and `filters` are what restricts it. For
users: `edge` is Qdrant's engine inside the process.

Behind `collection`: `views` know the kinds of vectors, and how each is refined; `multivector` is how matrices are
searched. `asking` says what a query is for, whose text `encoding` encodes, and `queries` puts that about one vector
`space` into Qdrant's words. `points` reads what comes back, with its `vectors`. `background` draws the sample, and
`words` is one of sparse vectors; `known` keeps both, with all else that is known of a collection, and `probing` sees
whether that still holds. `connection` keeps what is sent to the `limits` of a collection's strict mode; `clients`
sends it off, `compression` asks near servers for answers as they are, `loops` keeps event loops apart, and `channels`
has one of them make gRPC's calls; `errors` says what went wrong. `edge_types` turns qdrant-client's models into Edge's.
"""
