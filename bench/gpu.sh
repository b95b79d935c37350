#!/usr/bin/env sh
# All that wants a GPU, in at most eight minutes: the tests that skip without one, methods held against the CPU,
# what private adaptations cost side by side, and a Llama shape of 1 B against the roofline. Nothing is fetched.
# Run it from the repository's root; OUT is where the figures go.
set -u
out="${OUT:-bench}"
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
failed=0
for tests in tests/test_memory.py tests/test_side_by_side.py tests/test_spending.py; do
    python3 -m pytest -q "$tests" || failed=1
done
python3 bench/gpu.py --device cuda --out "$out/gpu.json" || failed=1
python3 bench/llama.py --device cuda --out "$out/llama.json" || failed=1
python3 bench/side_by_side.py --device cuda --gpt2 --out "$out/side_by_side_gpu.json" || failed=1
exit $failed
