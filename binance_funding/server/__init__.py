"""State file to HTTP: what is read, what is answered, and the server that sends it."""
