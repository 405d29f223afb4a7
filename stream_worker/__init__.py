"""From the log to verdicts: decode, store, commit, in this order and no other."""
