"""The command line.

`cli` is the program, and `demo`, `search`, `select`, `match`, `classify`, `calibrate`, `ui`, `mcp` and
`bench` are its commands, each as thin as it can be. They share the `options`, with the Qdrant (`connection`),
embedding model (`embedding`) and LLM (`teacher`) that these name, the file of `rows` that is gone on with, and how
`errors` and `progress` look.
"""
