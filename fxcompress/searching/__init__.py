"""The search for models under a budget."""
