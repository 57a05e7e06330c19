"""Images of nodes and queries: where they are, and how they are opened."""
