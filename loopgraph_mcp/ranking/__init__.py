"""Statistics of a search: what its runs say of methods and knobs, and what to try next. Nothing here does I/O."""
