"""Text before any model: documents, passages, readers, overlap, selection."""
