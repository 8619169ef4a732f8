"""A page to read and listen to."""
