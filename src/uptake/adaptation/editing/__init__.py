"""The algebra of editors: what to add to a weight so that some inputs give other outputs. Only tensors."""
