"""Examples as parquet."""
