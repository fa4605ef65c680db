"""Every performance claim has its script here; see ``benchmarks/README.md``."""
