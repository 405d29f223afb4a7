"""Who may do what: keys, their limits, and what stands in for them where there are none."""
