"""Bits for rows of tables by how often samples look them up: a step before other methods."""
