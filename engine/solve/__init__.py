"""The mathematics: from a start to the MAP solution."""
