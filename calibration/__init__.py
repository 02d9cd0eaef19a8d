"""Streaming calibration."""
