"""Objects of other packages that hold images, numbers with units, or positions."""
