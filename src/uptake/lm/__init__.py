"""Language models: one primitive, and scoring, generation and wrappers on top of it."""
