"""The hot-swapped model, the ranking path, HTTP and the live page."""
