"""The mathematics, on arrays alone: the refiner, its convex problem, how far a teacher is followed."""
