"""Agents that research by themselves: models and scripted researchers, with the memory and without it."""
