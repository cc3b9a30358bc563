#!/usr/bin/env bash
# Puts what was built, and the system's libraries that it needs, into one folder, for a machine that has torch and nothing
# else of what scripts/packages.txt lists: the same release of torch, a C library at least as new as this machine's.
#   scripts/portable.sh BUILD_FOLDER OUT [PROGRAM...]      e.g. scripts/portable.sh build/release build/portable rmoe
# There: LD_LIBRARY_PATH=OUT:TORCH/lib OUT/rmoe ...
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,5p "$0" >&2; exit 2; }
build=$1
out=$2
shift 2
programs=("$@")
[ $# -gt 0 ] || programs=(rmoe)
mkdir -p "$out"

files=("$build"/librmoe*.so)
for program in "${programs[@]}"; do
  file=$build/$program
  [ -f "$file" ] || file=$build/tests/$program
  files+=("$file")
done
cp -f "${files[@]}" "$out/"
for file in "${files[@]}"; do strip --strip-unneeded "$out/${file##*/}"; done

# Those of the C and C++ runtimes, and what torch brings or needs, are the other machine's.
theirs='^(ld-linux|linux-vdso|lib(c|m|dl|rt|pthread|resolv|stdc\+\+|gcc_s|gomp|torch|c10|cu|nv|shm)[._-])'
ldd "${files[@]}" | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' | sort -u | while read -r name path; do
  [[ $name =~ $theirs || -e $out/$name ]] || cp -L "$path" "$out/"
done
echo "portable: $out, $(du -sh "$out" | cut -f 1)" >&2
