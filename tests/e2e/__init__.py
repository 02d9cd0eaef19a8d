"""End to end: every program as a process, over a real broker and Redis."""
