"""The domain: what an event is, how its bytes are read, and why an event can be refused."""
