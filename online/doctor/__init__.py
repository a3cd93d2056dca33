"""What `nextclick doctor` checks: each check looks at what was read from outside, and gives a verdict."""
