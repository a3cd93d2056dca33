"""What the learner is made of: what a click teaches, and how a list comes of it."""
