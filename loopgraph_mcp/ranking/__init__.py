"""Statistics: posterior, verdict, prior, what to try next; no I/O."""
