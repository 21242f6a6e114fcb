"""Fill the gaps of texts: what `asarm.infill` and the commands `infill` and `score` do."""
