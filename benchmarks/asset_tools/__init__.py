"""Exported meshes in the tools that artists use: `python -m benchmarks.asset_tools --help`."""
