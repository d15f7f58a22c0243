"""What is known -> the state file, and back from it at the start."""
