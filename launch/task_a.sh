#!/usr/bin/env bash
# The runs that docs/report.md compares: one recipe and budget; all rivals, strategies and ablations.
#
#   bash launch/task_a.sh DATA_DIR               all of them, into runs/task-a/NAME
#   bash launch/task_a.sh DATA_DIR table slices  these only
#   JOBS=2 bash launch/task_a.sh DATA_DIR        two at a time, each on one CPU thread
#
# DATA_DIR is mini-ImageNet: images, train.txt, val.txt, test.txt. A run takes a quarter of an hour on one core. What
# was interrupted goes on where it stood; what is finished is evaluated again and otherwise left as it is.
# RECIPE=mini-imagenet is the same comparison on all 100 classes, for a GPU.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

(($# > 0)) || die "usage: bash $0 DATA_DIR [NAME…]"
[[ -d $1 ]] || die "DATA_DIR is not a directory: $1"
DATA=$(cd -- "$1" && pwd)
shift
RECIPE=${RECIPE:-resnet10-part}
RUNS=${RUNS:-runs/task-a}

runs() { # NAME, and what differs from the recipe, which is `spectral` where the name begins with bands-
    cat <<'END'
any-channel
naive             --model.stem zero-fill --schedule.channel-sets full
dropout           --model.stem zero-fill --model.fill mean
table             --model.stem table
expert-R          --model.stem plain --model.plain-channels R --schedule.channel-sets R
expert-G          --model.stem plain --model.plain-channels G --schedule.channel-sets G
expert-B          --model.stem plain --model.plain-channels B --schedule.channel-sets B
distilled         --schedule.distill 0.5
mixed             --schedule.channel-sets mixed
sampled           --schedule.channel-sets sampled
slices            --model.stem slices
expert-RG         --model.stem plain --model.plain-channels RG --schedule.channel-sets RG
expert-RB         --model.stem plain --model.plain-channels RB --schedule.channel-sets RB
expert-GB         --model.stem plain --model.plain-channels GB --schedule.channel-sets GB
no-conditioning   --model.no-conditioning
hypernet          --model.stem hypernet
depthwise         --model.stem depthwise
attention         --model.stem attention
shared-norm       --model.norm shared
templates-2       --model.templates 2
templates-1       --model.templates 1
wavelengths       --model.embedding wavelengths
gain-none         --model.gain none --model.norm shared
gain-linear       --model.gain linear --model.norm shared
bands-wavelengths --model.embedding wavelengths
bands-ids
bands-table       --model.stem table
bands-slices      --model.stem slices
bands-dropout     --model.stem zero-fill --model.fill mean
bands-hypernet    --model.stem hypernet
END
}

# Bands that no network is trained on, alone and together; nearest to each is a band of its own.
BANDS="475 505 545 585 625 475+545 505+585 545+625 435+545+665 475+545+625 435+505+585+665"

one() { # NAME FLAGS…
    local name=$1 recipe=$RECIPE
    shift
    [[ $name != bands-* ]] || recipe=spectral
    "$PYTHON_HERE" -m training.train "$recipe" --name "$name" --run-dir "$RUNS/$name" --data.path "$DATA" --resume "$@"
    "$PYTHON_HERE" -m training.evaluate "$RUNS/$name"
    local kind
    case $name in # other ways to use the same weights
    naive) for kind in mean rescaled repeat; do "$PYTHON_HERE" -m training.evaluate "$RUNS/$name" --missing "$kind"; done ;;
    any-channel | shared-norm) "$PYTHON_HERE" -m training.evaluate "$RUNS/$name" --recalibrate 2000 ;;
    esac
    [[ $name == bands-* ]] || return 0
    # shellcheck disable=SC2086 # each band, or set of bands, is a word of its own
    "$PYTHON_HERE" -m training.evaluate "$RUNS/$name" --unknown nearest --channel-sets $BANDS
    # shellcheck disable=SC2086
    [[ $name != bands-wavelengths ]] || "$PYTHON_HERE" -m training.evaluate "$RUNS/$name" --channel-sets $BANDS
}

chosen() { # NAME…: their rows; all without names
    (($# > 0)) || { runs; return; }
    local name
    for name; do runs | grep -E "^$name( |\$)" || die "no run is called $name; the names stand in $0"; done
}

rows=$(chosen "$@")
ensure_venv
cd -- "$ROOT"
if ((${JOBS:-1} > 1)); then export OMP_NUM_THREADS=1; fi
PYTHON_HERE=$VENV/bin/python
export DATA RECIPE RUNS PYTHON_HERE BANDS
export -f one
tr -s ' ' <<<"$rows" | xargs -P "${JOBS:-1}" -d '\n' -I ROW bash -c 'set -euo pipefail; one $1' task_a ROW
say "next: $VENV/bin/python -m training.report $RUNS/NAME…"
