"""Hand-crafted presets: reading, writing, converting."""
