"""Where samples and texts come from: one file a source."""
