"""See before you run: a few windows of a scene under several settings, and what the whole would take."""
