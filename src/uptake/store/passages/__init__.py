"""A store's passages: the table, the index derived from it, its encoders and its ranking."""
