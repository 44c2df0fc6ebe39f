"""Launchers of the suite; Hydra finds plugins under `hydra_plugins` alone."""
