"""Where the broker and Redis are, and how their clients log."""
