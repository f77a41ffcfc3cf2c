"""A scene that is drawn with its exact labels, and the tour over it."""
