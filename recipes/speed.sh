#!/usr/bin/env bash
# CPU seconds and gain of every way of working, against the published loop's.
set -euo pipefail
cd "$(dirname "$0")/.."
OMP_NUM_THREADS=1 python bench/speed.py "$@"
