"""What sampling does, over batch sizes and graphs."""
