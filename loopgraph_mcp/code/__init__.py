"""A program as text and as a syntax tree: hashes, outline, recipes, edits; no I/O."""
