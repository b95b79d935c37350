"""What a store needs away from the local disk: objects, and the right to write."""
