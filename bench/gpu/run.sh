#!/usr/bin/env bash
# run.sh parity|roofline|serve|embed|peers|all [--dry-run] [--out DIR]: measure Weir on this machine's GPU; see README.md.
# Each part takes less than nine minutes and leaves what it found in results.json after every figure.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -B bench/gpu/main.py "$@"
