"""What commands share: from a config to data, devices, checkpoints, plots."""
