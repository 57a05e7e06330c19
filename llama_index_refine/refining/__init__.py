"""The mathematics, on arrays alone.

For users: `refiner` has `QueryRefiner`, `published` the procedure of the paper for comparison, and `base` what a
refiner of your own inherits. `trust` has `Reliability`, a teacher's record.

Behind them: `problem` brings arrays and the three distances into one form, `newton` solves it, `matrices` stacks what
is compared by MaxSim. `evidence` says what grades tell of their teacher, `relevance` how likely a document is relevant.
"""
