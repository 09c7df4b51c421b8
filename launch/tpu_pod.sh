#!/usr/bin/env bash
# Trains on a Cloud TPU slice: every command acts on all of its workers.
#
#   launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE [--project=PROJECT] [options] [--dry-run] [-- program flags]
#
#   create --type=v4-32 [--version=RUNTIME] [--spot]   makes the slice; the runtime follows from the type
#   copy                         copies this checkout (what git does not ignore) to ~/dnt
#   install                      makes ~/dnt/.venv with Python 3.12, jax[tpu] and the requirements
#   run [--nfs=HOST:/SHARE] -- --config=... --workdir=/mnt/dnt/...   starts on all workers and follows worker 0
#   resume                       runs the last command again: it goes on from its last checkpoint
#   stop                         asks for a checkpoint and a clean end; the run then exits with 143
#   status                       the state of the slice, and of the run on each worker
#   fetch REMOTE_DIR [LOCAL_DIR] copies a workdir from worker 0 (default: to runs/)
#   delete                       deletes the slice; asks first
#
# The workdir must be one that all workers share: --nfs mounts a share (such as Filestore's) at /mnt/dnt. A run goes on
# when this terminal is closed; Ctrl-C here only stops following it. --dry-run prints the gcloud commands. gcloud reaches
# several workers only with a key in the agent: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

name='' zone='' project='' type='' version='' spot=false nfs='' paths=()
(($#)) || usage
action="$1"
shift
case "$action" in
  -h | --help) usage ;;
  create | copy | install | run | resume | stop | status | fetch | delete) ;;
  *) die "unknown command '$action'; valid: create, copy, install, run, resume, stop, status, fetch, delete" ;;
esac
while (($#)); do
  case "$1" in
    -h | --help) usage ;;
    --dry-run) DRY_RUN=true ;;
    --name=*) name="$(value "$1")" ;;
    --zone=*) zone="$(value "$1")" ;;
    --project=*) project="$(value "$1")" ;;
    --type=*) type="$(value "$1")" ;;
    --version=*) version="$(value "$1")" ;;
    --spot) spot=true ;;
    --nfs=*) nfs="$(value "$1")" ;;
    --) shift; break ;;
    -*) die "unknown option '$1'; the program's own flags stand after --; see --help" ;;
    *) paths+=("$1") ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  die "--name='$name' must be lower-case letters, digits and hyphens, starting with a letter"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || die "--zone='$zone' must be a zone such as us-central2-b"
if [[ $action != fetch ]] && ((${#paths[@]})); then die "unexpected argument '${paths[0]}'; see --help"; fi
if [[ $action != run ]] && (($#)); then die "only run takes flags of the program; resume repeats the last ones"; fi
need gcloud 'install the Google Cloud CLI, https://cloud.google.com/sdk'

place=("--zone=$zone" ${project:+"--project=$project"})

tpu() {
  local verb="$1"
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" "${place[@]}"
}

# on WORKERS COMMAND
on() {
  tpu ssh "$name" "--worker=$1" "--command=$2"
}

# ~/dnt-run/start.sh on the workers; $1 is the quoted program.
start_script() {
  cat << REMOTE
set -e
cd ~/dnt
if kill -0 "\$(cat ~/dnt-run/pid 2> /dev/null)" 2> /dev/null; then
  echo "\$(hostname): a run is going on; stop it first" >&2
  exit 1
fi
rm -f ~/dnt-run/code ~/dnt-run/pid
REMOTE
  if [[ -n $nfs ]]; then
    printf 'sudo mkdir -p /mnt/dnt\nmountpoint -q /mnt/dnt || { sudo mount -t nfs %q /mnt/dnt && sudo chmod a+rwx /mnt/dnt; }\n' "$nfs"
  fi
  cat << REMOTE
PYTHONUNBUFFERED=1 setsid bash -c '"\$@" & echo "\$!" > ~/dnt-run/pid; wait "\$!"; echo "\$?" > ~/dnt-run/code' \\
  dnt $1 > ~/dnt-run/log 2>&1 < /dev/null &
REMOTE
}

follow() {
  # shellcheck disable=SC2016 # for the worker's shell
  on 0 'until [ -s ~/dnt-run/pid ]; do sleep 0.2; done; tail -n +1 -f --pid="$(cat ~/dnt-run/pid)" ~/dnt-run/log; until [ -s ~/dnt-run/code ]; do sleep 0.2; done; exit "$(cat ~/dnt-run/code)"'
}

runtime() {
  case "$type" in
    v2-* | v3-* | v4-*) printf tpu-ubuntu2204-base ;;
    v5litepod-*) printf v2-alpha-tpuv5-lite ;;
    v5p-*) printf v2-alpha-tpuv5 ;;
    v6e-*) printf v2-alpha-tpuv6e ;;
    *) die "no runtime is known for --type=$type; give --version (cloud.google.com/tpu/docs/runtimes)" ;;
  esac
}

case "$action" in
  create)
    [[ -n $type ]] || die '--type=TYPE is needed, such as v4-32 (gcloud compute tpus accelerator-types list --zone=...)'
    if [[ -z $version ]]; then version="$(runtime)" || exit; fi
    options=("--accelerator-type=$type" "--version=$version")
    if $spot; then options+=(--spot); fi
    tpu create "$name" "${options[@]}"
    ;;
  copy)
    git -C "$ROOT" rev-parse --git-dir > /dev/null 2>&1 || die "$ROOT is not a git checkout"
    archive="$(mktemp -d)"
    trap 'rm -rf "$archive"' EXIT
    # The files that git knows or would take, if they are there.
    git -C "$ROOT" ls-files --cached --others --exclude-standard -z |
      while IFS= read -r -d '' file; do if [[ -e $ROOT/$file ]]; then printf '%s\0' "$file"; fi; done > "$archive/files"
    run tar -C "$ROOT" --null "--files-from=$archive/files" -czf "$archive/dnt.tar.gz"
    tpu scp "$archive/dnt.tar.gz" "$name:dnt.tar.gz" --worker=all
    on all 'mkdir -p ~/dnt && tar -xzf ~/dnt.tar.gz -C ~/dnt && rm ~/dnt.tar.gz'
    ;;
  install)
    on all 'set -e; sudo apt-get update -q; sudo apt-get install -qy nfs-common python3-pip; python3 -m pip install --user -q uv; cd ~/dnt; ~/.local/bin/uv venv -q --allow-existing --python 3.12 .venv; ~/.local/bin/uv pip install -q --python .venv/bin/python "jax[tpu]" -r requirements.txt; .venv/bin/python -c "import jax; print(jax.__version__)"'
    ;;
  run)
    check_program_flags "$@"
    workdir=''
    for flag in "$@"; do
      case "$flag" in --workdir=*) workdir="$(value "$flag")" ;; esac
    done
    [[ $workdir == /* ]] || die "--workdir='$workdir' must be an absolute path that all workers share, such as /mnt/dnt/run1"
    script="$(start_script "$(quoted .venv/bin/python -m dnt.main "$@" --distributed)")"
    on all "mkdir -p ~/dnt-run && printf '%s\\n' $(quoted "$script") > ~/dnt-run/start.sh && bash ~/dnt-run/start.sh"
    follow
    ;;
  resume)
    on all 'bash ~/dnt-run/start.sh'
    follow
    ;;
  stop)
    # shellcheck disable=SC2016 # for the worker's shell
    on all 'kill -TERM "$(cat ~/dnt-run/pid)"'
    ;;
  status)
    tpu describe "$name" '--format=value(state,health,acceleratorType)'
    # shellcheck disable=SC2016 # for the worker's shell
    on all 'echo "$(hostname): $(if kill -0 "$(cat ~/dnt-run/pid)"; then echo running; else echo "ended with exit code $(cat ~/dnt-run/code)"; fi 2> /dev/null): $(tail -n 1 ~/dnt-run/log)"'
    ;;
  fetch)
    ((${#paths[@]} == 1 || ${#paths[@]} == 2)) || die 'fetch REMOTE_DIR [LOCAL_DIR]'
    target="${paths[1]:-runs}"
    $DRY_RUN || mkdir -p "$target"
    tpu scp "$name:${paths[0]}" "$target" --recurse --worker=0
    ;;
  delete)
    tpu delete "$name"
    ;;
esac
