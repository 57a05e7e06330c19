"""Images of nodes and queries.

For the teachers that see them: `sources` says where they are, `reading` opens them, `identity` tells one from another.
For the pages that show them: `thumbnails`.
"""
