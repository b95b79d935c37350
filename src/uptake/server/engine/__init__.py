"""The engine: the one process of a server that holds the model and computes, in one thread at a time."""
