"""Networks: the only room with torch."""
