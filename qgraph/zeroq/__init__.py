"""ZeroQ: data distilled from a network's own BatchNormalization statistics."""
