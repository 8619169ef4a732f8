"""The command line: parses flags, opens files, calls the pure rooms."""

from typing import Any

# An ml_collections.ConfigDict, whose fields no type checker can know.
Config = Any
