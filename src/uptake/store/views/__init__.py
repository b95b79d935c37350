"""Views of a store kept beside its table: tokens with their keys, chunks with what continues them."""
