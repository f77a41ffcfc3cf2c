"""A Processing provider for QGIS 3 (`plugin/`, run by QGIS's own Python), and how it comes into a profile."""
