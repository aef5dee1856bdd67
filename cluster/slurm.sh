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
# Use it from the root of the repository, in an environment with `pip install -e '.[features]'`
# that every machine sees:
#   sbatch cluster/slurm.sh imagenet64 --out /shared/study --yes
# --out is a folder that every machine sees, or an address such as s3://BUCKET/study.
# If the job runs out of time or is requeued or cancelled, submit the same command again: finished
# runs are not repeated. Change the size with flags of sbatch: `sbatch --nodes=8 cluster/slurm.sh ...`.
#
# It costs nodes x hours of your allocation; `python sweeps/scaling.py NAME --dry-run` predicts the
# hours. Dashboard: ssh -L 8265:localhost:8265 HEAD (the log gives the name of the head).
#
# Security: other users of the cluster can reach Ray's ports, so every connection is checked against
# the token in ~/.ray/auth_token, which is created below if it is missing.
set -euo pipefail

: "${SLURM_JOB_ID:?start this with: sbatch cluster/slurm.sh ...}"
cd "$SLURM_SUBMIT_DIR"

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts[0]}
workers=$((${#hosts[@]} - 1))
cpus=${SLURM_CPUS_PER_TASK:-1}
resources=(--num-cpus="$cpus" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")

# Each job uses another port, so that it does not connect to the Ray of another job.
export RAY_ADDRESS="$head:$((20000 + SLURM_JOB_ID % 20000))"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export SRUN_CPUS_PER_TASK=$cpus # srun does not inherit it from sbatch
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
[[ -s $token ]] || (umask 077 && ray get-auth-token --generate >/dev/null)

# Ending the steps ends Ray. `ray stop` would also end the Ray of others on the same machine.
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT

echo "head $head, $workers more machines, Ray at $RAY_ADDRESS"
srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --port="${RAY_ADDRESS##*:}" --dashboard-host=127.0.0.1 \
    "${resources[@]}" --block &
for _ in {1..60}; do
    ray status >/dev/null 2>&1 && break
    sleep 2
done
if ((workers > 0)); then
    srun --nodes="$workers" --ntasks="$workers" --exclude="$head" \
        ray start --address="$RAY_ADDRESS" "${resources[@]}" --block &
fi

timeout 300 python - "${#hosts[@]}" <<'EOF_WAIT'
import sys, time, ray
ray.init(logging_level="ERROR", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(1)
EOF_WAIT

python -u sweeps/scaling.py "$@"
