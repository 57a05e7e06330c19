"""One query's way: search, grade, refine, search again."""
