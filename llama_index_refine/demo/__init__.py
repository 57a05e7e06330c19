"""The command `demo`: the whole loop on a sample of Banking77 that comes with the package."""
