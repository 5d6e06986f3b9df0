"""The version of the package, which `pyproject.toml`, plans, certificates and `qgraph --version` read here."""

__version__ = "0.2.0"
