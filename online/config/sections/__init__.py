"""Settings by subject: one class each, all of which online/config/settings.py puts together."""
