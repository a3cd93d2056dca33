"""Facts: what is counted and remembered, one click at a time, in compiled loops over numpy arrays."""
