# What every batch script shares. Sourced from the repository root on the job's first node:
#
#   preflight                             tests each node, then all of them together; where one fails, the job goes on
#                                         without it
#   stage FLAG [ARGS...]                  sets STAGED to ARGS; with ANYCHANNEL_STAGE, the packed folder that FLAG
#                                         names among them is copied to every node, the copy named instead, and
#                                         STAGED_FROM set to the folder
#   launch MODULE [ARGS...]               runs a program in one process per GPU, on every node of the job
#   launch_and_requeue RUN_DIR MODULE ... the same; when Slurm's warning comes, stops it cleanly and requeues
#
# Environment: ANYCHANNEL_CPU_RANKS processes per node where no GPU was asked for (default 1);
# ANYCHANNEL_VENV the environment to use (default .venv); ANYCHANNEL_STAGE a folder on the nodes' own disks, of the
# same name on all, e.g. /local/scratch; ANYCHANNEL_PREFLIGHT the seconds that a test of nodes waits for an answer
# (default 60), or 0 for no test. A cluster whose nodes have several networks may also need NCCL_SOCKET_IFNAME and
# GLOO_SOCKET_IFNAME; sbatch hands on whatever is exported.
set -euo pipefail

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

venv=${ANYCHANNEL_VENV:-$PWD/.venv}
[[ -f $venv/bin/activate ]] || die "no environment in $venv: make it once, on the login node, with bash launch/venv.sh"
source "$venv/bin/activate"

# What to requeue. The SLURM_JOB_ID of an array's last task is the whole array's: all tasks would be requeued with it.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}

# Slurm's warning, when it comes before the training has begun: it is heard as soon as what runs then has ended.
trap 'scontrol requeue "$JOB"; exit 0' USR1

NODES=$SLURM_JOB_NUM_NODES
DEVICE=cuda
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
    RANKS_PER_NODE=$SLURM_GPUS_ON_NODE
else
    DEVICE=cpu
    RANKS_PER_NODE=${ANYCHANNEL_CPU_RANKS:-1}
    # gloo, and none of the GPUs that a node without device limits may show; else every rank would train alone.
    export ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES=
    echo "no GPU was asked for (--gpus-per-node N): $RANKS_PER_NODE CPU process(es) per node"
fi
RANKS=$((NODES * RANKS_PER_NODE))

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# From the job id, so that jobs sharing a node differ, and below the ports the kernel hands out by itself.
# A job of one node takes any free port instead.
MASTER_PORT=$((NODES > 1 ? 15000 + SLURM_JOB_ID % 10000 : 0))

# From Slurm 22.05 on srun no longer takes over the job's --cpus-per-task.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# The launcher would give each process one thread.
THREADS=$((SRUN_CPUS_PER_TASK / RANKS_PER_NODE))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((THREADS > 0 ? THREADS : 1))}

on_each_node() { srun --nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1 "$@"; }

preflight() {
    local seconds=${ANYCHANNEL_PREFLIGHT:-60}
    [[ $seconds =~ ^[0-9]+$ ]] || die "ANYCHANNEL_PREFLIGHT is a number of seconds, or 0 for no test, not $seconds"
    ((seconds > 0)) || return 0
    test_nodes "$seconds"
    # Only those that are fine by themselves meet: who is missing then cannot be reached.
    ((NODES == 1)) || test_nodes "$seconds" --nodes "$NODES" --address "$MASTER_ADDR:$MASTER_PORT"
}

test_nodes() { # SECONDS [ARGUMENTS of training.preflight...]
    local seconds=$1 limit=$((2 * $1 + 60)) said bad failed
    shift
    # Nodes are told by what they say, not by srun's status: one that hangs, or has no python, says nothing. srun's own
    # limit, in minutes, is for what not even timeout can end.
    said=$(TORCH_CPP_LOG_LEVEL=FATAL on_each_node --kill-on-bad-exit=0 --time=$((limit / 60 + 2)) \
        timeout --kill-after=10 "$limit" python -m training.preflight \
        --ranks "$RANKS_PER_NODE" --device "$DEVICE" --patience "$seconds" "$@") || true
    echo "$said"
    mapfile -t bad < <(comm -23 <(scontrol show hostnames "$SLURM_JOB_NODELIST" | sort) \
        <(sed -n 's/^preflight: \([^ ]*\) ok.*/\1/p' <<<"$said" | sort))
    failed=${#bad[@]}
    ((failed > 0)) || return 0
    ((NODES == 1 || 2 * failed <= NODES)) ||
        die "$failed of $NODES nodes failed the preflight, so it is hardly the nodes: see above; where they do not" \
            "reach one another, name their network with GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
    go_on_without "${bad[@]}"
}

go_on_without() { # NODE...: requeues this job, never to run there again
    local bad excluded left log=slurm-logs/bad-nodes-$JOB
    bad=$(IFS=, && echo "$*")
    mkdir -p slurm-logs
    echo "$(date --iso-8601=seconds) $bad" >>"$log"
    (($(wc -l <"$log") <= 3)) || die "bad nodes again ($bad), for the fourth time: see $log, and the job's log for why"

    excluded=$(scontrol --oneliner show job "$JOB" | sed -n 's/.* ExcNodeList=\([^ ]*\) .*/\1/p')
    if [[ $excluded == '(null)' ]]; then excluded=$bad; else excluded+=,$bad; fi
    left=$(comm -23 <(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --format=%N | sort -u) \
        <(scontrol show hostnames "$excluded" | sort -u) | wc -l)
    ((left >= NODES)) ||
        die "$bad failed the preflight, and without $excluded partition $SLURM_JOB_PARTITION has too few nodes ($left)"

    echo "$bad failed the preflight: this job goes on without it, on other nodes"
    # Slurm takes the list for a job that waits only, so after the requeue, and that ends this script with SIGTERM.
    trap '' TERM
    scontrol requeue "$JOB"
    scontrol update JobId="$JOB" ExcNodeList="$excluded"
    exit 0
}

stage() {
    local flag=$1 path='' at=0 copy i
    shift
    STAGED=("$@") STAGED_FROM=
    [[ -n ${ANYCHANNEL_STAGE:-} ]] || return 0

    for ((i = 0; i < $#; i++)); do # the last one counts, as it does for the program
        case ${STAGED[i]} in
            "$flag="*) path=${STAGED[i]#*=} at=$i ;;
            "$flag") path=${STAGED[i + 1]:-} at=$((i + 1)) ;;
        esac
    done
    [[ -n $path ]] || die "ANYCHANNEL_STAGE is set, but nothing to copy: name a packed folder with $flag, or unset it"
    [[ -f $path/packed.json ]] ||
        die "$path is not packed: make it with python -m pipelines.packed pack, or unset ANYCHANNEL_STAGE"

    copy=$(on_each_node --kill-on-bad-exit=1 python -m pipelines.packed stage "$path" "$ANYCHANNEL_STAGE" | sort -u)
    [[ -d $copy ]] || die "$ANYCHANNEL_STAGE is not the same folder on all nodes: ${copy//$'\n'/, }"
    [[ ${STAGED[at]} == "$flag="* ]] && copy=$flag=$copy
    STAGED[at]=$copy STAGED_FROM=$path
}

launch() {
    # One launcher per node. The single quotes matter: SLURM_NODEID differs from node to node, so it must be
    # read there, not here. A launcher that fails takes the others down instead of leaving them to wait.
    # (When all went well the log may still end in "Error waiting on exit barrier": one launcher left before the
    # other had said goodbye. It is harmless.)
    on_each_node --kill-on-bad-exit=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launcher \
        --config_file launch/multinode.yaml --num_machines "$NODES" --num_processes "$RANKS" \
        --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" -m "$@"
}

launch_and_requeue() {
    local stop=$1/STOP launcher status warned=0
    shift
    rm -f -- "$stop" # of the last time: this job goes on from there

    # Only this shell gets the signal, which would kill the processes and the launcher. They look for the stop
    # file between two steps, save, and leave with status 0.
    trap 'warned=1' USR1
    launch "$@" &
    launcher=$!
    wait "$launcher" && status=0 || status=$? # until the launcher ends, or the signal comes
    if ((warned)); then
        echo "time is nearly up: asking the run to save and stop ($stop)"
        mkdir -p -- "${stop%/STOP}"
        # More than once: a run that is only just starting clears it away, taking it for an old one.
        while kill -0 "$launcher" 2>/dev/null; do touch -- "$stop" || true; sleep 2; done
        wait "$launcher" && status=0 || status=$?
    fi

    ((status == 0)) || exit "$status" # a failure, not a stop: going on would only hide it
    ((!warned)) || scontrol requeue "$JOB"
}
