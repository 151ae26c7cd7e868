"""HTTP: one router a file. No SQL, no FAISS, no numpy here."""
