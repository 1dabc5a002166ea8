"""What is reported of a solution: errors, fit quality, photometry, moments, star or galaxy."""
