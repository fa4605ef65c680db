"""What is profiled: a Lightning fit, or a loop of one's own."""
