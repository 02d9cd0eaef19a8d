"""The calibration's agent."""
