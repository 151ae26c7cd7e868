"""How extractors are measured and trained; nothing that serves a probe imports from here."""
