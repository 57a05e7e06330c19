"""The collection: what is asked of Qdrant, and how.

For the rooms above: `collection` is all that a retrieval asks, `options` and `filters` are what restricts it. For
users: `edge` is Qdrant's engine inside the process.

Behind `collection`: `views` know the kinds of vectors, and how each is refined; `encoding` encodes texts for those that
are not dense. `requests` puts what is asked about one vector space into Qdrant's words, and `limits` keeps it to what
strict mode allows. `vectors` says what a collection has, and `points` reads what comes back and says what of it is
returned. `background` draws the sample. The `gateway` keeps what is known of a collection, sends requests and sees
whether it is still the same; `clients` are called by it, and `errors` says what went wrong. `edge_types` turns
qdrant-client's models into Edge's.
"""
