"""From a recording to presets."""
