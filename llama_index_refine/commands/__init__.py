"""The command line.

`cli` is the program, and `demo`, `search`, `ui` and `bench` are its commands, each as thin as it can be. They share the
Qdrant (`connection`), the embedding model (`embedding`) and the LLM (`teacher`) that the options name, and how `errors`
look.
"""
