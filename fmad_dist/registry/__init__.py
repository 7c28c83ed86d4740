"""Registered versions of the detector: what they come from, how good they are, and which one is in use."""
