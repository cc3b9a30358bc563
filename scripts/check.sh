#!/usr/bin/env bash
# What a change must pass: format, layering, build with warnings as errors, clang-tidy, fast tests. Stops at the first
# step that fails.
#   scripts/check.sh [--all] [--since REV]   clang-tidy on what changed since REV (default: origin/main, and what is not
#                                            committed); --all: on every source
#   scripts/check.sh --fix-format            clang-format in place, nothing else
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all=0 fix=0 since=
while [ $# -gt 0 ]; do
  case $1 in
    --all) all=1 ;;
    --fix-format) fix=1 ;;
    --since) since=$(git rev-parse --verify "$2^{commit}"); shift ;;
    *) echo "check: unknown option '$1' (--all, --since REV, --fix-format)" >&2; exit 2 ;;
  esac
  shift
done
started=$SECONDS
step() { echo "check: $* ($((SECONDS - started)) s)" >&2; }
existing() { while IFS= read -r file; do [ ! -f "$file" ] || echo "$file"; done; }

sources() { git ls-files -co --exclude-standard 'src/*.h' 'src/*.cpp' 'src/*.cu' 'tests/*.h' 'tests/*.cpp' | existing; }
changed() { # sources that changed; for a header also the source that bears its name
  [ -n "$since" ] || since=$(git merge-base HEAD origin/main 2>/dev/null || git rev-parse HEAD)
  { git diff --name-only "$since"; git ls-files -o --exclude-standard; } |
    sed -n 's/\(.*\)\.\(h\|cpp\)$/\1.cpp/p' | sort -u | existing
}

if [ $fix = 1 ]; then
  scripts/setup.sh check
  sources | xargs -r clang-format-19 -i
  exit
fi

scripts/setup.sh build run test check
step format
sources | xargs -r clang-format-19 --dry-run --Werror || { echo "  help: make format" >&2; exit 1; }
step layering
python3 scripts/layering.py
step build
scripts/build.sh release
step clang-tidy
if [ $all = 1 ]; then files=$(sources); else files=$(changed); fi
# Only what the build compiles: its flags are known.
files=$(grep -E '^(src|tests)/.*\.cpp$' <<<"$files" | while IFS= read -r file; do
  ! grep -qF "\"$PWD/$file\"" build/release/compile_commands.json || echo "$file"
done || true)
# The compiler's precompiled header and a few of its flags are not clang's.
[ -z "$files" ] || xargs -P "${JOBS:-$(nproc)}" -n 1 clang-tidy-19 -p build/release --quiet \
  --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-gch <<<"$files" 2>build/clang-tidy.log ||
  { grep -E 'error:' build/clang-tidy.log >&2 || true; echo "check: clang-tidy found faults" >&2; exit 1; }
step "fast tests"
ctest --test-dir build/release -j "${JOBS:-$(nproc)}" -L fast --output-on-failure --no-tests=error
step passed
