"""Every stage timed beside its physical limit."""
