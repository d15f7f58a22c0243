"""From the state file to HTTP: reading the file, making the answers, and the server that sends them."""
