"""What recipes/fresh.py is made of: text that a model of 2024 cannot have read, questions and edits on it."""
