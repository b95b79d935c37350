"""Tasks that measure what a model has learnt: questions, the marks of answers, and made-up worlds."""
