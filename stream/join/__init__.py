"""The join: displays, clicks and conversions meet the row that was served."""
