"""What measures: how exposed planted secrets are, and what attacks on what clients send tell."""
