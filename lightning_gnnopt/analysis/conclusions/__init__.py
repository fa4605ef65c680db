"""What a profile's numbers mean, and what to do about it."""
