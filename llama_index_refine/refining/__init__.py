"""The mathematics, on arrays alone.

For users: `refiner` has `QueryRefiner`, `published` the procedure of the paper for comparison, and `base` what a
refiner of your own inherits. `trust` has `Reliability`, a teacher's record.

Behind them: `newton` solves the convex problem, `geometry` brings the three distances into one form, `matrices` stacks
what is compared by MaxSim, `arrays` takes numpy and torch, `allocation` says how grades are spent, `stopping` whether
more would change the list, `grade_range` which part of the scale a teacher uses, `abundance` how many documents its
queries usually have.
"""
