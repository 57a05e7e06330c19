"""Teachers, one a file."""
