"""From the bytes of a photo to the embedding of a face, and how the networks behind it are measured and trained."""
