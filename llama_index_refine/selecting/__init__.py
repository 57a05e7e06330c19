"""Where to cut a ranking, on arrays alone: how likely a document is relevant, and what is certain of a selection."""
