#!/usr/bin/env bash
#SBATCH --job-name=tarflow
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
#
# A scaling study on Slurm: starts Ray on every machine of the job, one task each, then the sweep.
#
# Use it from the root of the repository, in an environment that every machine sees, made with
# `pip install -r cluster/requirements.txt -e .`:
#   sbatch cluster/slurm.sh cifar10 --out /shared/study --yes
# --out is a folder that every machine sees, or an address such as s3://BUCKET/study.
# If the job runs out of time or is requeued or cancelled, submit the same command again: finished
# runs are not repeated. Change the size with flags of sbatch: `sbatch --nodes=8 cluster/slurm.sh ...`.
# What Ray says on each machine is in slurm-JOB-MACHINE.log. Machines have 10 minutes to join;
# `JOIN_SECONDS=1200 sbatch ...` gives them more. See also docs/cluster.md.
#
# It costs nodes x hours of your allocation; `python sweeps/scaling.py NAME --dry-run` predicts the
# hours, with --accelerator naming the GPU of the nodes. To watch it: `python sweeps/scaling.py
# /shared/study --watch` on any machine, or the dashboard: ssh -L 8265:localhost:8265 HEAD (the log
# gives the name of the head).
#
# Security: other users of the cluster can reach Ray's ports. These listen on all interfaces: Ray's
# store (a port of this job), and on each machine its raylet, object manager, agents and workers
# (ports that they choose); on the head also Ray's client (10001). All of them check the token in
# ~/.ray/auth_token, which is created below if it is missing. Ports of metrics would not, so they
# are closed; the dashboard listens on loopback and checks the token too.
set -euo pipefail

: "${SLURM_JOB_ID:?start this with: sbatch cluster/slurm.sh ...}"
cd "$SLURM_SUBMIT_DIR"

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
workers=$((${#hosts[@]} - 1))
cpus=${SLURM_CPUS_PER_TASK:-1}
resources=(--num-cpus="$cpus" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
join_seconds=${JOIN_SECONDS:-600}
logs=slurm-$SLURM_JOB_ID

fail() {
    echo "error: $*" >&2
    exit 1
}

# Each job uses another port, so that it does not connect to the Ray of another job: above those of
# Ray's workers, below those that Linux hands out.
export RAY_ADDRESS="$head:$((20000 + SLURM_JOB_ID % 12000))"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Ray goes on without the metrics whose port does not exist: nothing else closes these two.
export RAY_enable_metrics_collection=0 AUTOSCALER_METRIC_PORT=-1 DASHBOARD_METRIC_PORT=-1
export SRUN_CPUS_PER_TASK=$cpus # srun does not inherit it from sbatch
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
[[ -s $token ]] || (umask 077 && ray get-auth-token --generate >/dev/null)
chmod 600 "$token"

# Ending the steps ends Ray. `ray stop` would also end the Ray of others on the same machine.
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT

echo "head $head, $workers more machines, Ray at $RAY_ADDRESS"
srun --nodes=1 --ntasks=1 --nodelist="$head" --output="$logs-%N.log" \
    ray start --head --port="${RAY_ADDRESS##*:}" --dashboard-host=127.0.0.1 \
    "${resources[@]}" --block &
step=$!
until
    sleep 2
    kill -0 "$step" 2>/dev/null || fail "Ray did not start on $head: see $logs-$head.log"
    answer=$(timeout 20 ray status 2>&1)
do
    ((SECONDS < join_seconds)) ||
        fail "Ray on $head did not answer in $join_seconds s (${answer##*$'\n'}): see $logs-$head.log"
done
if ((workers > 0)); then
    srun --nodes="$workers" --ntasks="$workers" --exclude="$head" --output="$logs-%N.log" \
        ray start --address="$RAY_ADDRESS" "${resources[@]}" --block &
fi

python - "$join_seconds" "$logs" "${hosts[@]}" <<'EOF_WAIT'
import sys, time, ray
seconds, logs, *hosts = sys.argv[1:]
ray.init(logging_level="ERROR", log_to_driver=False)
end = time.monotonic() + float(seconds)
while len(names := [n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"]]) < len(hosts):
    if time.monotonic() > end:
        joined = {name.partition(".")[0] for name in names}
        missing = [host for host in hosts if host.partition(".")[0] not in joined]
        sys.exit(
            f"error: {len(names)} of {len(hosts)} machines joined in {float(seconds) / 60:g} min; "
            f"missing: {' '.join(missing)}; what Ray said there: {logs}-MACHINE.log"
        )
    time.sleep(1)
EOF_WAIT

python -u sweeps/scaling.py "$@"
