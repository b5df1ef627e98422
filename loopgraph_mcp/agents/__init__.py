"""Agents that research by themselves: models and scripted researchers, with and without the memory."""
