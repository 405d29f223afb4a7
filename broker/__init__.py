"""The log: ports (`ports`), and their two implementations (`kafka`, `local`)."""
