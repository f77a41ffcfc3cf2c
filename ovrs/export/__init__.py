"""Products of a finished map: rasters, polygons, styles, STAC, statistics, pictures."""
