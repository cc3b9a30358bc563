#!/usr/bin/env bash
# Makes this machine ready to build and test rmoe, says what it does, and does nothing twice.
#   scripts/setup.sh [GROUP...]      groups of scripts/packages.txt (default: build run test)
# 1. Debian packages, as root or through sudo. APT=no takes everything in the list as installed.
# 2. A torch >= 2.11, the first of: RMOE_TORCH=/path (a torch package, an unpacked libtorch, or the prefix of a
#    Python environment), the active environment ($VIRTUAL_ENV, $CONDA_PREFIX), .venv with requirements.txt.
# 3. The Python packages of the tests: in .venv, or beside a torch found elsewhere in .venv-test.
# Leaves build/setup.env: RMOE_TORCH_DIR (what to build on) and RMOE_PYTHON (runs the tests that are in Python).
# Exit codes: 2 when the person has to do something first, 4 when a download failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
least_torch=2.11
groups=("$@")
[ $# -gt 0 ] || groups=(build run test)
mkdir -p build

say() { echo "setup: $*" >&2; }
fail() { # CODE LINE...
  local code=$1 line
  shift
  say "$1"
  shift
  for line in "$@"; do echo "  $line" >&2; done
  exit "$code"
}

# ---- Debian packages -------------------------------------------------------------------------------------------------

packages_of() { # GROUP...: the packages of these groups, one a line
  awk -v groups=" $* " '{ sub(/#.*/, "") } /^\[/ { gsub(/[][ \t]/, ""); on = index(groups, " " $0 " "); next }
                        on && NF { print $1 }' scripts/packages.txt
}

missing_packages() { # GROUP...: those of them that are not installed
  local wanted
  wanted=$(packages_of "$@")
  # shellcheck disable=SC2086  # one word a package
  comm -23 <(sort -u <<<"$wanted") \
    <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null | sed -n 's/^installed //p' | sort -u)
}

install_packages() {
  [ "${APT:-yes}" != no ] || return 0
  local missing as_root=() log=build/setup-apt.log started=$SECONDS
  { command -v dpkg-query && command -v apt-get; } >/dev/null ||
    fail 2 "this system has no apt: install by hand what stands for these Debian packages," \
      "$(packages_of "${groups[@]}" | xargs)" "then say so: make APT=no ..."
  missing=$(missing_packages "${groups[@]}" | xargs)
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" != 0 ]; then
    as_root=(sudo)
    { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; }; } ||
      fail 2 "these Debian packages are missing, and only root (or sudo) can install them; ask for" \
        "apt-get install --no-install-recommends $missing" \
        "(if they are here by another way than apt, go on with: make APT=no ...)"
  fi
  say "apt-get install $missing"
  # Old package lists name files that are gone, and a fresh machine has none. One broken source need not matter.
  "${as_root[@]}" apt-get update -qq -o DPkg::Lock::Timeout=600 >"$log" 2>&1 || say "apt-get update failed: see $log"
  # shellcheck disable=SC2086
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o DPkg::Lock::Timeout=600 $missing >>"$log" 2>&1 </dev/null ||
    { tail -n 15 "$log" >&2; fail 4 "apt-get could not install them (on Ubuntu some are in 'universe'); all output: $log"; }
  say "packages installed in $((SECONDS - started)) s"
}

# ---- torch -----------------------------------------------------------------------------------------------------------

torch_version() { # TORCH_DIR, read without starting Python, which would take seconds
  local file
  for file in "$1"/version.py "$1"/lib/python3*/site-packages/torch/version.py; do
    [ ! -f "$file" ] || { sed -n "s/^__version__ = '\([^']*\)'.*/\1/p" "$file"; return; }
  done
  [ ! -f "$1/build-version" ] || cat "$1/build-version"
}

new_enough() { # VERSION
  [ -n "$1" ] && [ "$(printf '%s\n' "$least_torch" "$1" | sort -V | head -n 1)" = "$least_torch" ]
}

torch_in() { # PATH: the torch package that it is or holds
  local dir
  for dir in "$1" "$1"/torch "$1"/lib/python3*/site-packages/torch "$1"/lib/python3*/dist-packages/torch; do
    [ -f "$dir/lib/libtorch_cpu.so" ] && [ -d "$dir/include/ATen" ] && { realpath "$dir"; return; }
  done
  return 1
}

find_torch() { # sets torch_dir to a torch that is there already, or to nothing
  local prefix version
  torch_dir=
  if [ -n "${RMOE_TORCH:-}" ]; then
    torch_dir=$(torch_in "$RMOE_TORCH") ||
      fail 2 "RMOE_TORCH=$RMOE_TORCH holds no torch (neither lib/libtorch_cpu.so nor lib/python3*/site-packages/torch)"
    version=$(torch_version "$torch_dir")
    new_enough "$version" ||
      fail 2 "RMOE_TORCH=$RMOE_TORCH is torch ${version:-of an unknown version}; $least_torch or newer is needed"
    return
  fi
  for prefix in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    if [ -z "$prefix" ] || [ "$(realpath -m "$prefix")" = "$root/.venv" ]; then continue; fi
    torch_dir=$(torch_in "$prefix") || { torch_dir=; continue; }
    version=$(torch_version "$torch_dir")
    if new_enough "$version"; then return; fi
    say "the active environment has torch ${version:-of an unknown version}, not $least_torch or newer: using .venv"
    torch_dir=
  done
}

# ---- Python packages -------------------------------------------------------------------------------------------------

# Makes the virtual environment DIR with the packages of the FILES in it; nothing where that was done before.
# PYTHON makes it; empty: any python3 will do.
fill_venv() { # DIR PYTHON FILE...
  local dir=$1 python=$2 name=${1#"$root"/} log=build/setup-pip.log key args=() file started=$SECONDS
  shift 2
  key="${python:-any} $(cat "$@" | sha256sum)"
  [ "$(cat "$dir/.rmoe-setup" 2>/dev/null)" = "$key $("$dir/bin/python" --version 2>&1)" ] && return
  if { [ -n "$python" ] && [ -d "$dir" ]; } || ! "$dir/bin/python" -c 'import pip' 2>/dev/null; then
    [ -n "$python" ] || python=$(base_python)
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
      fail 2 "$python is $("$python" --version 2>&1), but 3.10 or newer is needed"
    "$python" -m venv --clear "$dir" || fail 2 "$python cannot make a virtual environment"
  fi
  for file in "$@"; do args+=(-r "$file"); done
  say "pip install ${args[*]} into $name"
  if [ -t 2 ]; then
    "$dir/bin/python" -m pip install --no-input --disable-pip-version-check "${args[@]}" >&2
  else
    "$dir/bin/python" -m pip install --no-input --disable-pip-version-check "${args[@]}" >"$log" 2>&1 ||
      { tail -n 15 "$log" >&2; false; }
  fi || fail 4 "pip could not install them"
  echo "$key $("$dir/bin/python" --version 2>&1)" >"$dir/.rmoe-setup"
  say "Python packages installed in $((SECONDS - started)) s"
}

base_python() { # the interpreter to make environments by: not one of an active environment, which may go away
  command -v python3 >/dev/null || fail 2 "python3 is not in the PATH"
  python3 -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
}

has_test_packages() { # SITE_PACKAGES
  local name
  while read -r name; do
    [ -d "$1/$name" ] || return 1
  done < <(sed -n 's/^\([a-z]*\)==.*/\1/p' requirements-test.txt)
}

install_python() { # sets torch_dir, if it is not set, and python
  local own site
  if [ -z "$torch_dir" ]; then
    fill_venv "$root/.venv" "" requirements.txt requirements-test.txt
    torch_dir=$(torch_in "$root/.venv") || fail 1 "pip installed torch, but .venv/lib/python3*/site-packages has none"
    python=$root/.venv/bin/python
    return
  fi
  own=${torch_dir%/lib/python3*}/bin/python3 # the interpreter of the environment that torch lies in, if it is in one
  [ -x "$own" ] || own=
  site=$(dirname "$torch_dir")
  [ -f "$site/torch/version.py" ] || site=$(dirname "$(echo "$torch_dir"/lib/python3*/site-packages/torch)")
  if [ -n "$own" ] && has_test_packages "$site"; then
    python=$own
    return
  fi
  # The tests' own packages stay out of an environment that is not ours; what lies there is found behind them.
  fill_venv "$root/.venv-test" "$own" requirements-test.txt
  python=$root/.venv-test/bin/python
  set -- "$root"/.venv-test/lib/python3*/site-packages
  if [ -n "$own" ]; then echo "$site" >"$1/rmoe-torch.pth"; else rm -f "$1/rmoe-torch.pth"; fi
}

# ----------------------------------------------------------------------------------------------------------------------

install_packages
find_torch
install_python
env_file="RMOE_TORCH_DIR=$(printf %q "$torch_dir")
RMOE_PYTHON=$(printf %q "$python")"
# Written only when it changes: a newer file means another torch, and so another build.
[ "$(cat build/setup.env 2>/dev/null)" = "$env_file" ] || printf '%s\n' "$env_file" >build/setup.env
say "ready: torch $(torch_version "$torch_dir") in ${torch_dir#"$root"/}"
