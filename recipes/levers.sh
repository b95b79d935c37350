#!/usr/bin/env bash
# What was tried on validation text, each choice a line of bench/levers.json. Interrupted, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
try() { python bench/levers.py "$@"; }
some=(--domains python_peps court_opinions pmc_ccby stackexchange)

# A small store or all training text; the whole prefix or its end searches.
try -k 5,10,20
try --passages 0 -k 5,10,20
try --passages 0 --search 384 -k 20
# The learning rate, and the control's.
try --passages 0 --search 384 --rates 3e-4 -k 20
try --passages 0 --method random --rates 3e-4,1e-3 -k 20
# The query's own prefix first; fewer neighbours, and twice as many.
try --passages 0 --set own_prefix=true -k 20
try --passages 0 --search 384 --set own_prefix=true -k 20,40
try --passages 0 --search 384 --set own_prefix=true --rates 5e-4 -k 5,10,20 "${some[@]}"
try --passages 0 --search 384 --set own_prefix=true -k 5,10 "${some[@]}"
# Not gone on with after the first domains: a larger rate, shorter passages, words and states together.
try --passages 0 --search 384 --set own_prefix=true --rates 2e-3 -k 5,10,20 --domains python_peps
try --passages 0 --characters 512 -k 20,40 --domains python_peps court_opinions
try --retriever hybrid --encoder states -k 20 --domains python_peps
# Dynamic evaluation; at rate 0, what cutting the text into pieces costs by itself.
try --passages 0 --search 384 --method dynamic-evaluation --rates 0,1e-4,3e-4,1e-3 -k 20 --windows 1
