#!/usr/bin/env bash
# Makes ROOT/.venv and installs the project into it, once; when nothing has changed it returns at once.
#
#   bash launch/venv.sh [EXTRAS]                           by hand, say on a cluster's login node
#   source launch/venv.sh; ensure_venv test,deepspeed      from a script; also gives it ROOT, VENV, say, die
#
# PYTHON=/path/to/python3.11 names the interpreter to build with; without it the first >= 3.11 found is taken.
set -euo pipefail
unset CDPATH # with it, cd may go elsewhere and print where

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
NEEDED_GB=12 # 5.4 GB installed; pip holds the wheels beside it meanwhile

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() { # prints the interpreter to build with
    local candidates=(python3 python3.13 python3.12 python3.11) candidate found=""
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        command -v -- "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
        found+=", $candidate is $("$candidate" --version 2>&1 | head -n 1)"
    done
    die "Python 3.11 or newer is needed${found:-, and ${candidates[0]} was not found}." \
        "Name one: PYTHON=/path/to/python3.11 bash '$0'"
}

make_venv() {
    local python free_gb log
    python=$(find_python)
    # Debian ships venv without ensurepip; asking first is plainer than venv's own half-made failure.
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make virtual environments: its venv or ensurepip module is missing." \
            "On Debian and Ubuntu: sudo apt-get install $("$python" -c \
                'import sys; print("python%d.%d-venv" % sys.version_info[:2])' 2>/dev/null || echo python3-venv)"

    rm -rf -- "$VENV"
    free_gb=$(($(df -k --output=avail -- "$ROOT" | tail -n 1) / 1024 / 1024))
    ((free_gb >= NEEDED_GB)) ||
        die "$VENV needs about $NEEDED_GB GB of free disk, and there are $free_gb GB." \
            "Free some, or move this folder to a larger disk."

    mkdir -- "$VENV"
    : >"$VENV/.half-made" # removed once everything is installed: whoever finds it starts over
    log=$("$python" -m venv "$VENV" 2>&1) || die "$python -m venv failed: $log"
}

install_project() { # EXTRAS
    local log=$VENV/install.log reason="pip could not install the project"
    say "Installing into $VENV (the first time about 2 minutes and 5.4 GB of CUDA wheels; log: install.log there)"
    if (cd -- "$ROOT" && "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check \
        --progress-bar off --editable ".${1:+[$1]}") >"$log" 2>&1; then
        # A CPU build of torch found in some other index installs without a word, and torchvision cannot load it.
        "$VENV/bin/python" -c 'import torchvision' >>"$log" 2>&1 && return
        reason="torch and torchvision do not fit together; did pip find them in different places? See: pip config list"
    elif grep -qi 'no space left on device' "$log"; then
        reason="the disk is full; pip unpacks in ${TMPDIR:-/tmp}: set TMPDIR to a folder with room"
    elif grep -qE 'NewConnectionError|NameResolutionError|Timeout(Error)?\(|ProxyError|Network is unreachable' "$log"; then
        reason="no network: the package index cannot be reached; connect, or name a mirror with PIP_INDEX_URL"
    fi
    say "The last lines of $log:" >&2
    tail -n 14 -- "$log" | cut -c 1-200 | sed 's/^/    /' >&2
    die "$reason"
}

ensure_venv() { # [EXTRAS], as in setup.cfg, separated by commas
    local extras=${1:-} hash
    # ROOT is in the hash because an editable install points to it: a moved folder installs again.
    hash=$({ say "$ROOT"; cat -- "$ROOT/setup.cfg" "$ROOT/pyproject.toml"; } | sha256sum | cut -c 1-12)
    local marker=$VENV/.installed-${extras:-base}-$hash

    if [[ -e $marker ]] && "$VENV/bin/python" -c '' 2>/dev/null; then return; fi
    if [[ -e $VENV/.half-made ]] || ! "$VENV/bin/python" -m pip --version &>/dev/null; then make_venv; fi
    install_project "$extras"
    find "$VENV/" -maxdepth 1 -name '.installed-*' ! -name "*-$hash" -delete
    : >"$VENV/.installed-base-$hash" # whatever the extras, the bare project is there too
    : >"$marker"
    rm -f -- "$VENV/.half-made"
}

# Run rather than sourced: do it.
[[ ${BASH_SOURCE[0]} != "$0" ]] || ensure_venv "$@"
