"""What the join holds: rows, waiting events, their index."""
