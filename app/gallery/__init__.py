"""Galleries of subjects: stored in SQL, searched with an index, decided at a threshold."""
