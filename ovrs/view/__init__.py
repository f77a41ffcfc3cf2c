"""A local page over a map, and a report in one HTML file."""
