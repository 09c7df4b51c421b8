#!/usr/bin/env bash
# Runs one training with SkyPilot, on the cloud where it finds the hardware, as a managed job: after a preemption SkyPilot
# makes the machines again, and the run goes on from its last checkpoint.
#
#   launch/skypilot.sh --name=NAME --accelerators=H100:8 [--nodes=2] [--bucket=gs://DATA] [--infra=gcp/us-central1] [--spot]
#     [--dry-run] -- --config=... --workdir=gs://... [flags]
#
#   --accelerators=  GPUs of each node, such as H100:8, or a TPU slice, such as tpu-v5litepod-16
#   --nodes=N        nodes with these GPUs (default 1); a TPU slice has its own number of hosts
#   --bucket=        a bucket of data that is mounted at /mnt/dnt on every node: gs://NAME, s3://NAME, ...
#   --infra=         where, as SkyPilot writes it (CLOUD/REGION/ZONE, k8s/CONTEXT); default: where it is cheapest
#   --spot           takes machines that may be preempted
#   --dry-run        prints the task, which `sky jobs launch FILE` takes too
#
# The workdir is gs://BUCKET/PATH, which the nodes may write to, on whichever cloud they are. It cannot be below /mnt/dnt: a
# run appends to its files, and a mounted bucket gets a file only when it is closed, which a preemption does not wait for.
#
# sky jobs queue lists the jobs, sky jobs logs follows one, and sky jobs cancel ends it. The same command goes on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=slices.sh
source "$(dirname "${BASH_SOURCE[0]}")/slices.sh"

PORT=8476 # of process 0, where the nodes meet

name='' accelerators='' nodes=1 bucket='' infra='' spot=false
while (($#)); do
  case "$1" in
    -h | --help) usage ;;
    --dry-run) DRY_RUN=true ;;
    --name=*) name="$(value "$1")" ;;
    --accelerators=*) accelerators="$(value "$1")" ;;
    --nodes=*) nodes="$(value "$1")" ;;
    --bucket=*) bucket="$(value "$1")" ;;
    --infra=*) infra="$(value "$1")" ;;
    --spot) spot=true ;;
    --) shift; break ;;
    *) die "unknown option '$1'; the program's own flags stand after --; see --help" ;;
  esac
  shift
done
check_name --name "$name" '[a-z]([-a-z0-9]{0,40}[a-z0-9])?' 'lower-case letters, digits and hyphens, starting with a letter'
check_name --accelerators "$accelerators" 'tpu-[a-z0-9]+-[0-9]+|[A-Za-z0-9][A-Za-z0-9-]*:[1-9][0-9]*' 'GPUs such as H100:8, or a TPU slice such as tpu-v5litepod-16'
check_name --bucket "$bucket" '|[a-z0-9]+://[a-z0-9][A-Za-z0-9._/-]*' 'the address of a bucket, such as gs://name'
check_name --infra "$infra" '|[A-Za-z0-9*]+(/[A-Za-z0-9*._:@-]+)*' 'such as gcp, gcp/us-central1, gcp/us-central1/us-central1-a or k8s/CONTEXT'
check_count --nodes "$nodes"
tpu=''
if [[ $accelerators == tpu-* ]]; then
  tpu="${accelerators#tpu-}"
  describe_slice "$tpu" ||
    die "--accelerators='$accelerators' must be a slice of v4, v5litepod, v5p or v6e, such as tpu-v5litepod-16"
  ((nodes == 1)) ||
    die "--nodes=$nodes and --accelerators=$accelerators disagree: it is one slice ($topology) with $hosts hosts of its own; leave --nodes out"
fi
check_program_flags GIT "$@"
workdir="$(flag_of workdir "$@")"
[[ $workdir == gs://?*/?* ]] ||
  die "--workdir='$workdir' must be gs://BUCKET/PATH: a run appends to its files, which a mounted bucket cannot do; --bucket is for data"
[[ -n $bucket || $(flag_of config "$@") != /mnt/dnt/* ]] || die '--config=/mnt/dnt/... needs --bucket, which is mounted there'
need sky 'install it: pip install "skypilot[gcp]" (or another cloud)'

# The processes find one another by what the slice says of itself, or by what SkyPilot tells each node
# (docs.skypilot.co, Distributed Multi-Node Jobs).
command="exec .venv/bin/python -m dnt.main $(quoted "$@" --distributed)"
# shellcheck disable=SC2016 # for the nodes' shells
if [[ -z $tpu ]]; then
  command+=' --coordinator="$(head -n 1 <<< "$SKYPILOT_NODE_IPS"):'"$PORT"'"'
  command+=' --num_processes="$SKYPILOT_NUM_NODES" --process_id="$SKYPILOT_NODE_RANK"'
fi

task() {
  cat << YAML
name: $name
# What git does not ignore of this checkout.
workdir: $(json_list "$ROOT" | sed 's/^\[\(.*\)\]$/\1/')
num_nodes: $nodes
resources:
  accelerators: "$accelerators"
YAML
  if [[ -n $tpu ]]; then printf '  accelerator_args:\n    runtime_version: %s\n' "$(runtime_of "$tpu")"; fi
  if [[ -n $infra ]]; then printf '  infra: "%s"\n' "$infra"; fi
  cat << YAML
  use_spot: $spot
  job_recovery:
    # Stopped by a signal (SIGHUP, SIGINT, SIGTERM) after a save, as a machine is that will be preempted.
    recover_on_exit_codes: [129, 130, 143]
YAML
  if [[ -n $bucket ]]; then printf 'file_mounts:\n  /mnt/dnt:\n    source: "%s"\n    mode: MOUNT\n' "$bucket"; fi
  cat << YAML
setup: |
  set -e
  python3 -m pip install --user -q uv
  python3 -m uv venv -q --allow-existing --python $PYTHON_VERSION .venv
  python3 -m uv pip install -q --python .venv/bin/python "jax[$([[ -n $tpu ]] && echo tpu || echo cuda13)]" gcsfs h5py huggingface_hub -r requirements.txt -c constraints-$PYTHON_VERSION.txt
run: |
  # With JAX_PLATFORMS, devices that fail are an error, and no run on the CPUs.
  export PYTHONUNBUFFERED=1 JAX_PLATFORMS=$([[ -n $tpu ]] && echo tpu || echo cuda),cpu
  $command
YAML
}

if $DRY_RUN; then
  task
else
  file="$(mktemp --suffix=.yaml)"
  trap 'rm -f "$file"' EXIT
  task > "$file"
  sky jobs launch --yes "--name=$name" "$file"
fi
