"""Work by name: the catalog, the imagery of collections, and the ledger of what is done of it."""
