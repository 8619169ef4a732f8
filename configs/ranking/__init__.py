"""Tables of sweeps for `launch.rank`, one file per synthesizer."""
