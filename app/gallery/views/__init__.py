"""What a process searches: views of the galleries in memory, which follow what SQL has."""
