"""Retrievers that learn what to find: query encoders trained by a frozen reader, over stores that stay."""
