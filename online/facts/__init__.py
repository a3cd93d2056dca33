"""What is counted and remembered: arrays, and compiled loops over them."""
