"""The store: the only package that talks to a database."""
