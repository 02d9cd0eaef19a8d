"""What stands in the topics: records, columns, their checks. Pure."""
