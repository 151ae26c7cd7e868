"""How long people are kept, and how they are erased for good."""
