"""What past queries have taught: their grades, who gave them, and what each teacher is worth.

For users: `memory`, and `export`, which says how its grades become training data. For `retrieval`: `remembered` is what
is kept of a query, and `transfer` what similar queries lend to a new one, and how far they may lead it. For whoever
adds a store: `records` says what is asked of one.
"""
