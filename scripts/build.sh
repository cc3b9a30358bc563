#!/usr/bin/env bash
# Configures one CMake preset when that is due, and builds it.
#   scripts/build.sh PRESET [TARGET...]      e.g. scripts/build.sh release rmoe
# JOBS=n: so many compilers at once; by default one a core, and fewer where memory is short.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=$1
shift
folder=build/$preset
started=$SECONDS

# Configured anew when it never was, when scripts/setup.sh found another torch, or when the presets changed.
due=$folder/.configured-for
settings=$(cat build/setup.env CMakePresets.json)
if [ ! -f "$folder/build.ninja" ] || [ "$(cat "$due" 2>/dev/null)" != "$settings" ]; then
  # shellcheck disable=SC1091
  . build/setup.env
  mkdir -p "$folder"
  echo "build: cmake --preset $preset" >&2
  log=$folder/configure.log
  cmake --preset "$preset" --fresh -DRMOE_TORCH_DIR="$RMOE_TORCH_DIR" -DPython3_EXECUTABLE="$RMOE_PYTHON" \
    >"$log" 2>&1 || { cat "$log" >&2; echo "build: configuring failed" >&2; exit 1; }
  printf '%s\n' "$settings" >"$due"
fi

if [ -z "${JOBS:-}" ]; then
  JOBS=$(nproc)
  # A file that includes ATen's headers takes up to 1.5 GB.
  fit=$(awk '/^MemAvailable:/ { print int($2 / 1572864) }' /proc/meminfo)
  [ "$JOBS" -le "$fit" ] || JOBS=$((fit > 1 ? fit : 1))
fi
command=(cmake --build "$folder" -j "$JOBS")
[ $# -eq 0 ] || command+=(--target "$@")
if [ -t 1 ]; then
  NINJA_STATUS="[%f/%t, %e s] " "${command[@]}"
else
  # Not a terminal: of ninja's line for every file, one in ten seconds; everything else (warnings, errors) whole.
  NINJA_STATUS="[%f/%t, %e s] " "${command[@]}" 2>&1 | awk '
    /^\[[0-9]+\/[0-9]+, [0-9.]+ s\] / { if ($2 < next_at) next; next_at = $2 + 10 }
    { print; fflush() }'
fi
echo "build: $folder is up to date ($((SECONDS - started)) s)" >&2
