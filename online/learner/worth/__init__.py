"""What clicks are worth: counts of event types and values, and what lists are ranked by (docs/objectives.md)."""
