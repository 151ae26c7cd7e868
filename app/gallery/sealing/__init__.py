"""Encryption at rest: rows and files, and where the keys are."""
