"""How a refinement shows itself: in a notebook, in a terminal, as a figure and in a log."""
