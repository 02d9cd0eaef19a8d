"""Tests of learners.deepfm."""
