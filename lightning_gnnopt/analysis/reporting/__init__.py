"""A profile for people to read."""
