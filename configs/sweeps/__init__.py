"""One file per search space, for `launch.sweep`."""
