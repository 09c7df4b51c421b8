#!/usr/bin/env bash
# Submits one training to Slurm: one process a node, which drives all GPUs of its node.
#
#   launch/slurm.sh --nodes=2 --gpus-per-node=4 --cpus-per-task=64 --time=12:00:00 [sbatch options] [--dry-run]
#     -- --config=... --workdir=...
#
# Options before -- go to sbatch as they are (--partition=, --account=, --job-name=, ...); what stands after it goes to
# dnt.main. The CPUs of a task (--cpus-per-task, --cpus-per-gpu or --exclusive) read its images; Slurm's default is one.
# --dry-run prints the command and the job script. Run it where `python -m dnt.main` works;
# PYTHON names the interpreter (default: python). The workdir must be on a file system that all nodes share, or gs://BUCKET/PATH.
#
# Two minutes before the time limit, and when the job is preempted or cancelled, Slurm sends SIGTERM: the processes
# agree on a step, save and end together with exit code 143. The job then queues itself again under the same number and goes
# on from there, until the run has finished or failed; scancel ends it (--no-requeue: so does the time limit, and the same
# command goes on). Its output is appended to one file, NAME-NUMBER.out.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

options=() name='' cpus=''
while (($#)); do
  case "$1" in
    -h | --help) usage ;;
    --dry-run) DRY_RUN=true ;;
    --) shift; break ;;
    --nodes=* | --gpus-per-node=*)
      check_count "${1%%=*}" "$(value "$1")"; options+=("$1") ;;
    --cpus-per-task=* | --cpus-per-gpu=*)
      check_count "${1%%=*}" "$(value "$1")"; cpus=given; options+=("$1") ;;
    --exclusive) cpus=given; options+=("$1") ;;
    --ntasks* | --gpus-per-task* | -n*)
      die "$1: there is one task a node, which drives all its GPUs; give --nodes and --gpus-per-node" ;;
    --job-name=*)
      [[ $1 != */* ]] || die "$1 holds a slash; the output goes to a file of that name"
      name=given; options+=("$1") ;;
    --[a-z]*) options+=("$1") ;;
    *) die "sbatch options are written --name=value, and the program's own stand after --; got '$1'; see --help" ;;
  esac
  shift
done
check_program_flags HERE "$@"
config="$(flag_of config "$@")"
workdir="$(flag_of workdir "$@")"
[[ -n $workdir ]] || die '--workdir=DIR is needed, on a file system that all nodes share, or gs://BUCKET/PATH'
if [[ -z $name && -n $config ]]; then options+=("--job-name=dnt-$(basename "${config%.py*}")"); fi
joining="$(flag_of join_timeout "$@")"
check_count --join_timeout "${joining:=300}"
need sbatch 'run this on a login node of the cluster'
if [[ -z $cpus ]]; then
  echo 'slurm.sh: without --cpus-per-task=N, --cpus-per-gpu=N or --exclusive, Slurm gives a task one CPU, unless the partition has another default' >&2
fi

script="#!/bin/bash
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
export PYTHONPATH=$(quoted "$ROOT")\${PYTHONPATH:+:\$PYTHONPATH} PYTHONUNBUFFERED=1
# srun does not take this over from sbatch by itself.
if [[ -n \${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=\$SLURM_CPUS_PER_TASK; fi
# scancel signals this script too, and the time limit only the processes.
cancelled=false
trap 'cancelled=true' TERM
requeue() {
  if ((\$1 != 143)) || \$cancelled; then return; fi
  scontrol requeue \"\$SLURM_JOB_ID\" || echo 'the job cannot queue itself again; the same launch/slurm.sh command goes on' >&2
}
trap 'requeue \$?' EXIT
# A process that fails ends the others, which name it first (dnt/parallel/peers.py); those that have not met it yet wait
# for --join_timeout. Slurm must end none of them: after its SIGTERM, srun too would end with 143. Only one that hangs
# long after another has ended is killed.
srun --kill-on-bad-exit=0 --wait=$((joining + 600)) --label $(quoted "${PYTHON:-python}" -m dnt.main "$@" --distributed)"

if $DRY_RUN; then
  run sbatch ${options[@]+"${options[@]}"}
  printf '%s\n' "$script"
else
  sbatch ${options[@]+"${options[@]}"} <<< "$script"
fi
