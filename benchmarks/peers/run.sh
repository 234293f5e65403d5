#!/bin/sh
# Measures all peers in less than ten minutes on two quiet cores and writes benchmarks/results:
#     sh benchmarks/peers/run.sh PHOTOGRAPHS VENVS FOLDER
# PHOTOGRAPHS is a folder of class folders, VENVS is what make_venvs.sh made. FOLDER takes the
# peers' data sets, which are kept for the next time, and the rounds, which are not.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH="$PWD"
mkdir -p "$3"
rm -f "$3/load.json" "$3/shard.json"
"$python" benchmarks/peers_load.py "$1" --venvs "$2" --data "$3/data" --state "$3/load.json" \
    --rounds 3 --out benchmarks/results
"$python" benchmarks/peers_shard.py "$1" --venvs "$2" --state "$3/shard.json" \
    --rounds 2 --out benchmarks/results
"$python" benchmarks/make_readme.py
