"""The memory study: what a batch takes, and what it costs to keep it within a limit."""
