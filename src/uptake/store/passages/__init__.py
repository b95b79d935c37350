"""A store's passages: the table, the index derived from it, who embeds and who ranks them."""
