"""Equalisation across layers: an equivalent network whose channels suit grids of few bits (`qgraph.equalise`)."""
