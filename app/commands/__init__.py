"""The commands of `facegallery`, one a module."""
