#!/usr/bin/env bash
# The runs that docs/report.md compares: one recipe and budget, all rivals, strategies and ablations.
#
#   bash launch/task_a.sh DATA_DIR               all of them, into runs/task-a/NAME
#   bash launch/task_a.sh DATA_DIR table slices  these only
#   JOBS=2 bash launch/task_a.sh DATA_DIR        two at a time, each on one CPU thread
#
# DATA_DIR is mini-ImageNet: images, train.txt, val.txt, test.txt. A run takes a quarter of an hour on one core. What
# was interrupted goes on where it stood, what is finished is left as it is.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

(($# > 0)) || die "usage: bash $0 DATA_DIR [NAME…]"
[[ -d $1 ]] || die "DATA_DIR is not a directory: $1"
data=$(cd -- "$1" && pwd)
shift
export RECIPE=${RECIPE:-resnet10-part} RUNS=${RUNS:-runs/task-a} DATA=$data

runs() { # NAME, and what differs from the recipe
    cat <<'END'
any-channel
naive           --model.stem zero-fill --schedule.channel-sets full
dropout         --model.stem zero-fill --model.fill mean
table           --model.stem table
expert-R        --model.stem plain --model.plain-channels R --schedule.channel-sets R
expert-G        --model.stem plain --model.plain-channels G --schedule.channel-sets G
expert-B        --model.stem plain --model.plain-channels B --schedule.channel-sets B
distilled       --schedule.distill 0.5
mixed           --schedule.channel-sets mixed
sampled         --schedule.channel-sets sampled
slices          --model.stem slices
expert-RG       --model.stem plain --model.plain-channels RG --schedule.channel-sets RG
expert-RB       --model.stem plain --model.plain-channels RB --schedule.channel-sets RB
expert-GB       --model.stem plain --model.plain-channels GB --schedule.channel-sets GB
no-conditioning --model.no-conditioning
hypernet        --model.stem hypernet
depthwise       --model.stem depthwise
attention       --model.stem attention
shared-norm     --model.norm shared
mean-fill       --model.stem zero-fill --model.fill mean --schedule.channel-sets full
rescaled        --model.stem zero-fill-rescaled --schedule.channel-sets full
repeat          --model.stem repeat --schedule.channel-sets full
full            --schedule.channel-sets full
templates-2     --model.templates 2
templates-1     --model.templates 1
gain-none       --model.gain none --model.norm shared
gain-linear     --model.gain linear --model.norm shared
END
}

one() { # NAME FLAGS…
    local name=$1
    shift
    "$VENV/bin/python" -m training.train "$RECIPE" --name "$name" --run-dir "$RUNS/$name" --data.path "$DATA" --resume "$@"
}

chosen() { # NAME…: their rows; all without names
    (($# > 0)) || { runs; return; }
    local name
    for name; do runs | grep -E "^$name( |\$)" || die "no run is called $name; the names stand in $0"; done
}

ensure_venv
cd -- "$ROOT"
if ((${JOBS:-1} > 1)); then export OMP_NUM_THREADS=1; fi
export -f one
export VENV
chosen "$@" | tr -s ' ' | xargs -P "${JOBS:-1}" -d '\n' -I ROW bash -c 'set -euo pipefail; one $1' task_a ROW
say "next: $VENV/bin/python -m training.evaluate $RUNS/*"
