"""Bound the Parquet files of a group: merge small ones into larger ones, and delete the oldest rows."""
