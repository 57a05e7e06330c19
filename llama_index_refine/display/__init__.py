"""How a refinement shows itself. Users reach all of it from the `Refinement`.

`html` in a notebook, `table` in a terminal, `figure` as a plot, `record` in a log; `moves` and `ranking` are what they
show. `cuts` draws a `Selection`, and `intervals` shows a `Calibration`.
"""
