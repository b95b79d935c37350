#!/usr/bin/env bash
# The table over every test document of six domains, and the curve over k. Interrupted, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
OMP_NUM_THREADS=1 python bench/main_job.py "$@"
