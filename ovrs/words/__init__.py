"""Classes and their prompts: vocabularies, prompt writers and their checks."""
