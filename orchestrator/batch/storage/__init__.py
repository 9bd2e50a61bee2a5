"""Where a table's pictures are kept: folders and object stores, written whole, under a lease, with commit markers."""
