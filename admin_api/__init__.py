"""The read side over HTTP: events, statistics and dead letters, for operators."""
