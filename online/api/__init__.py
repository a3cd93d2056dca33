"""What serve is made of: keys and limits, clicks in, metrics, the dashboard."""
