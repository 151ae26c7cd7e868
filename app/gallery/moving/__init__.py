"""In and out: imports, archives, and backups."""
