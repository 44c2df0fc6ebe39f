"""Attention mechanisms: pure functions with a thin module each; no projections and no config in here."""
