"""How weights change: deltas, what is trainable, optimizers and the inner loop."""
