"""The guard: a plan whose outputs miss a target gives way where it is ruined, cheapest first, until they hold."""
