"""All SQL: one module for each stage of the chain."""
