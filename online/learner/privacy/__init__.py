"""Learning under differential privacy (docs/privacy.md)."""
