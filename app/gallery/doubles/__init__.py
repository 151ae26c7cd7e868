"""Subjects that look like one person."""
