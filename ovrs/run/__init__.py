"""One run: begun, described, computed block by block, finished, verified, published."""
