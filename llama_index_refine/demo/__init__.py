"""The command `demo`: the whole loop on a sample of Banking77 that comes with the package.

`sample` is the data, `measure` what is measured on it, `report` and `picture` what is shown of that.
"""
