"""What the commands do and show; the commands themselves stand in online/cli.py."""
