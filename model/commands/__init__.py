"""The commands of `facemodel`, one a module."""
