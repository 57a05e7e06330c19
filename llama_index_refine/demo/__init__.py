"""The command `demo`: the whole loop on a sample of Banking77 that comes with the package.

For users: `sample.open_sample`, a retriever on it. `sample` is the data, `labels` its human labels as a teacher,
`measure` what is measured on it, `report` and `picture` what is shown of that.
"""
