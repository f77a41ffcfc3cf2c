"""Pure work on tiles and blocks, and where it runs: in this process, in threads, or on a Dask cluster."""
