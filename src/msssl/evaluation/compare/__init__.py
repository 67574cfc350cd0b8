"""Runs side by side, over seeds and with intervals."""
