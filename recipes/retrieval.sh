#!/usr/bin/env bash
# What finds the neighbours, and the leak filter's threshold. Interrupted, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
OMP_NUM_THREADS=1 python bench/retrieval.py "$@"
