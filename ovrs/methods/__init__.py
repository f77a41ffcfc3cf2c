"""What methods there are, their settings, and the papers' presets. No torch."""
