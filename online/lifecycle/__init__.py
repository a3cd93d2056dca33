"""Left alone at night: drift, the reaction to it, fine-tuning's candidates, versions and the way back."""
