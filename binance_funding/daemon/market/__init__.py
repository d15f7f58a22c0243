"""Records -> what is known of the market: the newest ones, how old they are, and the last 24 hours."""
