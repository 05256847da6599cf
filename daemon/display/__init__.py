"""The terminal: what is drawn on it, what it can show, and the keys that are pressed."""
