"""Takes a profile: steps are cut into labelled stretches of time and memory."""
