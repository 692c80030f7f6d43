#!/usr/bin/env bash
# The runs that docs/report.md compares: each study is a list of them, in launch/studies/.
#
#   bash launch/study.sh a DATA_DIR               all runs of study a, into runs/study-a/NAME
#   bash launch/study.sh a DATA_DIR table slices  these only
#   JOBS=2 bash launch/study.sh a DATA_DIR        two at a time, each on one CPU thread
#   RECIPE=mini-imagenet bash launch/study.sh …   another recipe in place of every run's own, say for a GPU
#   RUNS=DIR bash launch/study.sh …               into DIR/NAME, DIR as seen from the project
#
# DATA_DIR is mini-ImageNet: images, train.txt, val.txt, test.txt. What was interrupted goes on where it stood; what is
# finished is evaluated again and otherwise left as it is.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

STUDIES=$ROOT/launch/studies
(($# > 1)) || die "usage: bash $0 STUDY DATA_DIR [NAME…], where STUDY is one of:" \
    "$(basename -s .txt -a -- "$STUDIES"/*.txt | tr '\n' ' ')"
study=$STUDIES/$1.txt
[[ -f $study ]] || die "no study is called $1; launch/studies holds $(basename -s .txt -a -- "$STUDIES"/*.txt | tr '\n' ' ')"
[[ -d $2 ]] || die "DATA_DIR is not a directory: $2"
DATA=$(cd -- "$2" && pwd)
RUNS=${RUNS:-runs/study-$1}
RECIPE=${RECIPE:-}
shift 2

# A run for each line: NAME RECIPE FLAGS…, then a bar and flags for each further evaluation, which in the file are
# indented lines of their own.
runs() {
    awk '/^ *(#|$)/ { next } /^ / { row = row " |" $0; next } { if (row) print row; row = $0 } END { print row }' "$study"
}

chosen() { # NAME…: their rows; all without names
    (($# > 0)) || { runs; return; }
    local name
    for name; do runs | grep -E "^$name " || die "no run is called $name; the names stand in $study"; done
}

one() { # "NAME RECIPE FLAGS… | FLAGS… | …"
    local IFS='|' parts flags
    read -ra parts <<<"$1"
    IFS=' ' read -ra flags <<<"${parts[0]}"
    flags=("${flags[@]/#RUNS\//"$RUNS"/}") # word by word: the folder may have spaces
    local run=$RUNS/${flags[0]}
    "$PYTHON_HERE" -m training.train "${RECIPE:-${flags[1]}}" --name "${flags[0]}" --run-dir "$run" --data.path "$DATA" \
        --resume "${flags[@]:2}"
    "$PYTHON_HERE" -m training.evaluate "$run"
    local part
    for part in "${parts[@]:1}"; do
        IFS=' ' read -ra flags <<<"$part"
        flags=("${flags[@]/#RUNS\//"$RUNS"/}")
        "$PYTHON_HERE" -m training.evaluate "$run" "${flags[@]}"
    done
}

rows=$(chosen "$@")
ensure_venv
cd -- "$ROOT"
if ((${JOBS:-1} > 1)); then export OMP_NUM_THREADS=1; fi
PYTHON_HERE=$VENV/bin/python
export DATA RECIPE RUNS PYTHON_HERE
export -f one
tr -s ' ' <<<"$rows" | xargs -P "${JOBS:-1}" -d '\n' -I ROW bash -c 'set -euo pipefail; one "$1"' study ROW
say "next: $VENV/bin/python -m training.report $RUNS/NAME…"
