"""The map on disk: Zarr arrays with georeferencing, overviews and the run's record."""
