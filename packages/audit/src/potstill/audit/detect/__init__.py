"""What finds a backdoor, and what takes it out."""
