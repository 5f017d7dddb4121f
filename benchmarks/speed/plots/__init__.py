"""What draws the series of measures, a module each."""
