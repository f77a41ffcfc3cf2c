"""Generated bad inputs: seeded makers by kind, and the runner that judges what the command line does with them."""
