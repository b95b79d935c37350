"""Text as chunks of so many tokens, each found by its words or its vector and read with what continues it.

RETRO (Borgeaud et al. 2021, arXiv 2112.04426, section 2) reads text in this shape. A document's tokens
are cut every `length` tokens from its first on; what continues a chunk is the next one of the same
document. Nothing here knows files: a datastore keeps `Columns` on disk, `listed` makes them in memory.
"""
