#!/usr/bin/env bash
# The main job, end to end: data, training, evaluation of every channel set, a page to look at.
#
#   bash launch/quickstart.sh              on the embedded data set, into runs/quickstart
#   bash launch/quickstart.sh DATA_DIR     on a folder with train.txt, val.txt, test.txt, into runs/quickstart-NAME-NUMBER
#
# At most 8 minutes on two CPU cores, after an installation of about 2; a second run reuses what it finds.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

data=data/synthetic
runs=runs/quickstart
if (($# > 0)); then
    [[ -d $1 ]] || die "DATA_DIR is not a directory: $1"
    data=$(cd -- "$1" && pwd) # before leaving the caller's directory
    runs=runs/quickstart-$(basename -- "$data")-$(printf '%s' "$data" | cksum | cut -d ' ' -f 1) # names recur, paths do not
fi

ensure_venv
cd -- "$ROOT"
python=$VENV/bin/python

(($# > 0)) || "$python" -m pipelines.synthetic "$data"

# --resume continues an interrupted run and leaves a finished one as it is.
"$python" -m training.train quickstart --run-dir "$runs/any-channel" --data.path "$data" --resume
"$python" -m training.train quickstart-naive --run-dir "$runs/naive" --data.path "$data" --resume

"$python" -m training.evaluate "$runs/any-channel" "$runs/naive" --split test
"$python" -m training.report "$runs/any-channel" "$runs/naive" --out "$runs/report.html"

cat <<END

Look at
  $ROOT/$runs/report.html
  cd $(printf '%q' "$ROOT") && .venv/bin/tensorboard --logdir $(printf '%q' "$runs") --host 127.0.0.1
Try next
  bash launch/quickstart.sh DATA_DIR                                   the same on images of your own
  .venv/bin/python -m training.train --help                            the other recipes, and every setting
  mkdir -p slurm-logs && sbatch slurm/train.sbatch quickstart          a cluster; the head of that file says how
END
