"""Adaptation of text or network to a tile or a scene, one file per method."""
