#!/usr/bin/env bash
# pack.sh: put together what the GPU machine needs: both executables, stripped and compressed, in bench/gpu/bin, which git does not
# know. The scripts beside this one travel as they are. Fails if all of it is over 48 MiB.
set -euo pipefail
cd "$(dirname "$0")/../.."
limit=$((48 << 20))
into=bench/gpu/bin
built="${CARGO_TARGET_DIR:-target}/release"
rm -rf "$into"
mkdir -p "$into"
for name in weir weir-gpu; do
    if [ ! -e "$built/$name" ]; then
        # Without a GPU's executable it is good for --dry-run only.
        [ "$name" = weir-gpu ] && [ "${1-}" = --cpu-only ] && continue
        echo "pack.sh: there is no $built/$name (make build cuda; --cpu-only packs weir alone)" >&2
        exit 1
    fi
    strip -s -o "$into/$name" "$built/$name"
    # The GPU machine's python reads this; zstd may not be there.
    xz -9e -T0 "$into/$name"
done
git describe --always --abbrev=12 --dirty >"$into/COMMIT"
total=$(tar -cf - --exclude=__pycache__ --exclude=peers --exclude=results.json bench/gpu | wc -c)
if [ -d bench/gpu/peers ]; then
    total=$((total + $(tar -cf - bench/gpu/peers | xz -1 -T0 | wc -c)))
fi
ls -l "$into"
printf 'pack.sh: %d bytes of at most %d\n' "$total" "$limit"
[ "$total" -le "$limit" ]
