"""The MCAP recorder, its codec, replay and export."""
