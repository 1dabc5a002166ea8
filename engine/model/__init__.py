"""The model bundle, checked, and what runs its networks."""
