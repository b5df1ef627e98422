"""Processes and devices: what an experiment runs on, and how its processes are started, known and ended."""
