"""What is stored: the database, what stands in its rows, and its history."""
