"""What every method is: the contract, learned and composed methods, states on disk."""
