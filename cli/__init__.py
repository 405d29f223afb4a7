"""The `aggregator` command: reads the configuration and puts every process together."""
