"""Detect drift in the streams: conformal tests of readings and tokens against a reference."""
