"""Class LoopGraph and one module for each verb."""
