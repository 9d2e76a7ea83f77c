"""What the workbench is put through on purpose: `python -m tests.torture` (`make torture`), and a short form in CI.

Each trial works for a number of seconds on a seed and reports figures: load held, faults injected, inputs tried, lost.
"""
