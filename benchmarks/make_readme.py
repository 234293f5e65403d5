"""Writes README.md beside this file from results/*.json: `python benchmarks/make_readme.py`."""

from pathlib import Path

from alexprep.bench.all import readme

HERE = Path(__file__).parent

if __name__ == "__main__":
    (HERE / "README.md").write_text(readme(HERE / "results"))
