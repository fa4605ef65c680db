"""The thesis's experiments, each a Hydra multirun that can be resumed."""
