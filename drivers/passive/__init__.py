"""Follows an acquisition that somebody else runs."""
