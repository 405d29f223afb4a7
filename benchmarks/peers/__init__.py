"""Other projects' programs, fetched into a cache outside the tree, configured as well as we know how to."""
