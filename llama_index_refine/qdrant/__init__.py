"""The collection: what is asked of Qdrant, and how."""
