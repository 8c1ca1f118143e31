"""What a package of one's own adds to fedkd, one of each kind."""
