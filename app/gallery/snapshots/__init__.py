"""Views kept on disk, for a quick restart and for memory that processes share."""
