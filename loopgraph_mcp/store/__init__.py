"""Everything SQL: one module per stage of the chain."""
