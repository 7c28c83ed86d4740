"""fmad: distributed flow-matching anomaly detection for visual inspection."""

__version__ = "0.2.0"
