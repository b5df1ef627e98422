"""Processes and devices: where an experiment runs, and how its processes are started, identified and ended."""
