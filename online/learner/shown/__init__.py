"""What was shown and not clicked: examination of positions, how attractive items are, and what users passed over."""
