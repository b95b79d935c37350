"""What is asked of a model to see what it has learnt: questions, their marks, and made-up worlds."""
