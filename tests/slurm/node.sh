#!/bin/bash
# The first process of a machine of tests/slurm/cluster.py, in namespaces of its own. The controller's machine is also
# the switch (br0); cluster.py plugs a cable (eth0) into the others once NAME.up says that they are there. The machine
# is gone when its daemon ends.
#
#   node.sh HOME NAME ADDRESS
set -euo pipefail
home=$1 name=$2 address=$3

hostname "$name"
mount --bind "$home/hosts" /etc/hosts
ip link set lo up
if [[ $name == controller ]]; then
    card=br0
    ip link add br0 type bridge
    touch "$home/$name.up"
else
    card=eth0
    touch "$home/$name.up"
    until ip link show eth0 &>/dev/null; do sleep 0.02; done
fi
ip address add "$address/24" dev "$card"
ip link set "$card" up

cd /
if [[ $name == controller ]]; then
    munged --key-file="$home/munge.key" --socket="$home/munge.socket" --pid-file="$home/munged.pid" \
        --log-file="$home/munged.log" --seed-file="$home/munge.seed"
    slurmctld -D -c &
else
    slurmd -D -N "$name" &
fi
daemon=$!
# What jobs leave behind become children of this process: wait for all of them, until the daemon ends.
while kill -0 "$daemon" 2>/dev/null; do wait -n || true; done
