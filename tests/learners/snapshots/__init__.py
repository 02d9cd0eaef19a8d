"""Tests of learners.snapshots."""
