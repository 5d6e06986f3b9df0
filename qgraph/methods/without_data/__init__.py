"""What plans are worth without data: a step after other methods."""
