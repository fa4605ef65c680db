"""The bottleneck study: models and graphs, many settings each."""
