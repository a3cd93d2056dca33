"""What a turn of the loop is made of: records in, lists out, and what lets it be killed at any moment."""
