"""Runs on disk: record, hash, folder, status. Standard library only."""
