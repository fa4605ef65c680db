"""Hydra configs, found as `pkg://lightning_gnnopt.conf`."""
