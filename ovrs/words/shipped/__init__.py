"""Vocabularies that come with the program."""
