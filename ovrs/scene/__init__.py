"""A raster as the engine sees it: a north-up grid, 8-bit RGB windows and validity."""
