"""Views of a store, in files beside its table: tokens with their keys, chunks with what continues them."""
