"""What items say of themselves, as the ranker reads it: bags of features, vectors, candidates and columns."""
