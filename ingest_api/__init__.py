"""The HTTP gateway: takes events, checks them, and answers once the log has them. Knows no database."""
