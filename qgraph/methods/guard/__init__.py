"""The guard: where outputs miss a target, give up the grids that ruin them, cheapest first, until they meet it."""
