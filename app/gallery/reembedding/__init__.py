"""A gallery moves to another extractor."""
