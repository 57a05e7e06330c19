"""What is remembered of past queries: their grades, who gave them, and what the teacher is worth."""
