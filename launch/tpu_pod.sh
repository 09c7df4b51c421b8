#!/usr/bin/env bash
# Trains on a Cloud TPU slice: every command acts on all of its workers.
#
#   launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE [--project=PROJECT] [options] [--dry-run] [-- program flags]
#
#   create --type=v5litepod-16 [--version=RUNTIME] [--spot] [--queued]
#                                makes the slice; the runtime follows from the type. --queued asks for it as a queued
#                                resource and waits until it is there; status and delete then need --queued too
#   copy                         copies this checkout (what git does not ignore) to ~/dnt, and removes the
#                                modules of the last copy that the checkout has no more
#   install                      makes ~/dnt/.venv with Python 3.13, jax[tpu], gcsfs, h5py, huggingface_hub and the requirements,
#                                in tested versions
#   run [--nfs=HOST:/SHARE] -- --config=... --workdir=gs://...   starts on all workers and follows worker 0
#   run --recreate --type=... [--spot] [--queued] [--version=...]    the same, but after a preemption it deletes the slice,
#                                does all of the above again, as often as it takes to get one, and the run goes on from
#                                its last checkpoint; also after a restart of one of its machines. It ends if gcloud refuses
#                                a slice for another reason than capacity, or if runs keep ending minutes after a restart
#   resume                       runs the last command again: it goes on from its last checkpoint
#   stop                         asks for a checkpoint and a clean end; the run then exits with 143
#   status                       the state of the slice, and of the run on each worker
#   fetch REMOTE_DIR [LOCAL_DIR] copies a workdir from worker 0 (default: to runs/)
#   delete                       deletes the slice; asks first
#
# --preflight with create or run, which then need both --type and the program's flags, first compiles the run for the slice
# on this machine (python -m dnt.rehearse; PYTHON names the interpreter), and goes on only if it fits. The images need not be
# here: --stand_in=1281167:1000 says how many images of how many classes the training split has; then the program's flags set
# --config.data.image_size, if the config does not.
#
# The workdir is usually in a bucket, gs://BUCKET/PATH, which the service account of the slice may write to (gcloud
# storage cp -r fetches it). Or it is on a disk that all workers share: --nfs mounts a share (such as Filestore's) at
# /mnt/dnt, for --workdir=/mnt/dnt/...; fetch copies from there. A run goes on when this terminal is closed; Ctrl-C here only stops following it. --recreate can only watch while it runs: start it on
# a machine that stays on. ~/dnt-run/log on each worker is the output of the last start, log.1, log.2, ... of those
# before it. --dry-run prints the commands. gcloud reaches several workers only with a key in the agent: ssh-add
# ~/.ssh/google_compute_engine
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=slices.sh
source "$(dirname "${BASH_SOURCE[0]}")/slices.sh"

POLL=30  # seconds between two questions for the state of the slice
SHORT=600 # seconds; a machine that restarts so soon after the start of a run may do so because of the run
NOTICE=60 # seconds after which a slice whose machines were told to stop has another state than READY

name='' zone='' project='' type='' version='' nfs='' stand_in='' paths=()
spot=false queued=false recreate=false preflight=false
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
    --queued) queued=true ;;
    --recreate) recreate=true ;;
    --preflight) preflight=true ;;
    --stand_in=*) stand_in="$(value "$1")" ;;
    --nfs=*) nfs="$(value "$1")" ;;
    --) shift; break ;;
    -*) die "unknown option '$1'; the program's own flags stand after --; see --help" ;;
    *) paths+=("$1") ;;
  esac
  shift
done
check_name --name "$name" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' 'lower-case letters, digits and hyphens, starting with a letter'
check_name --zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z0-9]+' 'a zone such as us-central2-b'
check_name --project "$project" '|[a-z0-9:.-]+' "a project's id: lower-case letters, digits and hyphens"
if [[ $action != fetch ]] && ((${#paths[@]})); then die "unexpected argument '${paths[0]}'; see --help"; fi
if $recreate && [[ $action != run ]]; then die '--recreate goes with run'; fi
if $preflight && [[ $action != create && $action != run ]]; then die '--preflight goes with create and run'; fi
if [[ -n $stand_in ]] && ! $preflight; then die '--stand_in goes with --preflight'; fi
if [[ $action != run ]] && ! $preflight && (($#)); then
  die 'only run takes flags of the program (and create --preflight); resume repeats the last ones'
fi
if [[ $action == create ]] || $recreate || $preflight; then
  [[ -n $type ]] || die '--type=TYPE is needed, such as v5litepod-16 (gcloud compute tpus accelerator-types list --zone=...)'
  if describe_slice "$type"; then
    printf '%s: %s, %s chips, %s hosts\n' "$type" "$topology" "$chips" "$hosts" >&2
  elif $preflight; then
    die "--preflight knows v4, v5litepod, v5p and v6e, not --type=$type"
  fi
  if [[ -z $version ]]; then
    version="$(runtime_of "$type")" ||
      die "no runtime is known for --type=$type; give --version (cloud.google.com/tpu/docs/runtimes)"
  fi
fi
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

# For the workers' shells. `going` is whether the run of ~/dnt-run/pid goes on, and sets $pid. ~/dnt-run/began is when that
# process started (field 22 of /proc/PID/stat): after a restart of the machine its number may be that of another one.
# shellcheck disable=SC2016
GOING='began() { sed "s/.*) //" "/proc/$1/stat" 2> /dev/null | cut -d" " -f20; }; going() { read -r pid < ~/dnt-run/pid && [ -s ~/dnt-run/began ] && [ "$(began "$pid")" = "$(cat ~/dnt-run/began)" ]; } 2> /dev/null; '

# ~/dnt-run/start.sh on the workers; $1 is the quoted program.
start_script() {
  cat << REMOTE
set -e
cd ~/dnt
${GOING}export -f began
REMOTE
  cat << 'REMOTE'
if going; then
  echo "$(hostname): a run is going on; stop it first" >&2
  exit 1
fi
rm -f ~/dnt-run/code ~/dnt-run/pid ~/dnt-run/began
if [ -e ~/dnt-run/log ]; then
  n=1
  while [ -e ~/dnt-run/log.$n ]; do n=$((n + 1)); done
  mv ~/dnt-run/log ~/dnt-run/log.$n
fi
REMOTE
  if [[ -n $nfs ]]; then
    printf 'sudo mkdir -p /mnt/dnt\nmountpoint -q /mnt/dnt || { sudo mount -t nfs %q /mnt/dnt && sudo chmod a+rwx /mnt/dnt; }\n' "$nfs"
  fi
  cat << REMOTE
PYTHONUNBUFFERED=1 JAX_PLATFORMS=tpu,cpu setsid bash -c '"\$@" & began "\$!" > ~/dnt-run/began; echo "\$!" > ~/dnt-run/pid; wait "\$!"; echo "\$?" > ~/dnt-run/code' \\
  dnt $1 > ~/dnt-run/log 2>&1 < /dev/null &
REMOTE
}

start() {
  local script
  script="$(start_script "$(quoted .venv/bin/python -m dnt.main "$@" --distributed)")"
  on all "mkdir -p ~/dnt-run && printf '%s\\n' $(quoted "$script") > ~/dnt-run/start.sh && bash ~/dnt-run/start.sh"
}

# What a worker says of its run.
# shellcheck disable=SC2016 # for the workers' shells
HOW="$GOING"'if going; then how=running; elif [ -s ~/dnt-run/code ]; then how="ended with exit code $(cat ~/dnt-run/code)"; elif [ -e ~/dnt-run/log ]; then how="ended without an exit code (killed, or the machine has restarted)"; else how="no run was started"; fi; echo "$(hostname): $how: $(tail -n 1 ~/dnt-run/log 2> /dev/null)"'

# Whether a machine has restarted, or someone has killed its run; waits for one that does not answer yet.
has_vanished() {
  local said tries
  for ((tries = 0; tries < 10; tries++)); do
    if said="$(on all "$HOW")"; then
      [[ $said == *': ended without an exit code '* ]]
      return
    fi
    sleep "$POLL"
  done
  return 1
}

VANISHED=254 # exit code of follow if the run has ended without one
# Prints the output of worker 0 until the run has ended; returns its exit code, 255 if the connection was lost.
follow() {
  # shellcheck disable=SC2016 # for the worker's shell
  on 0 "$GOING"'for _ in $(seq 150); do [ ! -s ~/dnt-run/pid ] || break; sleep 0.2; done; if going; then tail -n +1 -f --pid="$pid" ~/dnt-run/log; else cat ~/dnt-run/log; fi; for _ in $(seq 10); do if [ -s ~/dnt-run/code ]; then exit "$(cat ~/dnt-run/code)"; fi; sleep 0.5; done; echo "the run has ended without an exit code: its machine has restarted, or someone has killed it" >&2; exit '"$VANISHED"
}

# What the service says of the slice: READY, PREEMPTED, ...; nothing if there is none, or no answer.
slice_state() {
  local state=ACTIVE
  if $queued; then state="$(queue describe "$name" '--format=value(state.state)' 2> /dev/null)" || true; fi
  # Of a queued resource that is active, the slice itself says more.
  if [[ $state == ACTIVE ]]; then state="$(tpu describe "$name" '--format=value(state)' 2> /dev/null)" || true; fi
  printf '%s' "$state"
}

# Waits until the slice is ready, or will not be; sets `state`.
settle() {
  local before='' silent=0
  while :; do
    state="$(slice_state)"
    if [[ $state != "$before" ]]; then printf '%s: %s\n' "$name" "${state:-no answer}" >&2; fi
    before="$state"
    case "$state" in
      READY | PREEMPTED | TERMINATED | SUSPENDED | FAILED) break ;;
      '') silent=$((silent + 1)); ((silent < 10)) || break ;;
      *) silent=0 ;;
    esac
    sleep "$POLL"
  done
}

queue() {
  local verb="$1"
  shift
  run gcloud compute tpus queued-resources "$verb" "$@" "${place[@]}"
}

NO_CAPACITY=253 # exit code of create, for --recreate, if there is no slice to be had now
# Asks for a slice. What gcloud refuses for another reason (login, permission, quota, runtime) it refuses again.
request() {
  local errors code=0
  if ! $recreate; then
    "$@"
    return
  fi
  errors="$(mktemp)"
  { "$@" 2>&1 >&3 | tee "$errors" >&2 || code=$?; } 3>&1
  if ((code)) && ! grep -iq quota "$errors" && # which has the code of capacity
    grep -Eq '[Cc]apacity|[Ss]tockout|EXHAUSTED|UNAVAILABLE|currently unavailable|code"?:? (8|14)([^0-9]|$)' "$errors"; then
    code=$NO_CAPACITY
  fi
  rm -f "$errors"
  return "$code"
}

create() {
  local options=("--accelerator-type=$type") state
  if $queued; then
    options+=("--node-id=$name" "--runtime-version=$version")
  else
    options+=("--version=$version")
  fi
  if $spot; then options+=(--spot); fi
  if ! $queued; then
    request tpu create "$name" "${options[@]}"
    return
  fi
  request queue create "$name" "${options[@]}"
  if $DRY_RUN; then return; fi
  settle
  if [[ $state != READY ]]; then
    printf 'tpu_pod.sh: the slice was not made (%s); delete --queued removes the request\n' "${state:-no answer}" >&2
    return 1
  fi
}

delete() {
  if $queued; then queue delete "$name" --force "$@"; else tpu delete "$name" "$@"; fi
}

copy() {
  git -C "$ROOT" rev-parse --git-dir > /dev/null 2>&1 || die "$ROOT is not a git checkout"
  archive="$(mktemp -d)"
  trap 'rm -rf "$archive"' EXIT
  # The files that git knows or would take, if they are there.
  git -C "$ROOT" ls-files --cached --others --exclude-standard -z |
    while IFS= read -r -d '' file; do if [[ -e $ROOT/$file ]]; then printf '%s\0' "$file"; fi; done > "$archive/.copied"
  run tar -czf "$archive/dnt.tar.gz" -C "$archive" .copied -C "$ROOT" --null "--files-from=$archive/.copied"
  tpu scp "$archive/dnt.tar.gz" "$name:dnt.tar.gz" --worker=all
  # The modules of the last copy go first: one that the checkout has no more could hide one of today. Other files stay: git
  # may ignore by now what it took for the last copy, such as data.
  on all 'mkdir -p ~/dnt && cd ~/dnt && { [ ! -e .copied ] || grep -z "\.py$" .copied | xargs -0 rm -f -- || true; } && tar -xzf ~/dnt.tar.gz && rm ~/dnt.tar.gz'
  rm -rf "$archive"
}

install() {
  local version="$PYTHON_VERSION"
  # A machine that has just booted installs updates of its own, and holds apt's locks meanwhile.
  # shellcheck disable=SC2016 # for the workers' shells
  on all 'set -e; n=0; until sudo apt-get update -q && sudo apt-get -o DPkg::Lock::Timeout=600 install -qy nfs-common python3-pip; do n=$((n + 1)); [ "$n" -lt 30 ]; sleep 10; done; python3 -m pip install --user -q uv; cd ~/dnt; ~/.local/bin/uv venv -q --allow-existing --python '"$version"' .venv; ~/.local/bin/uv pip install -q --python .venv/bin/python "jax[tpu]" gcsfs h5py huggingface_hub -r requirements.txt -c constraints-'"$version"'.txt; .venv/bin/python -c "import jax; print(jax.__version__)"'
}

# Compiles the run for the slice on this machine; ends with the exit code of dnt.rehearse if it does not fit.
rehearse() {
  local python="${PYTHON:-python}" flags=() word keep=false code=0 workdir
  workdir="$(flag_of workdir "$@")"
  if [[ -z $(flag_of config "$@") ]]; then # the run has the config of its workdir, which of folders only the workers see
    [[ $workdir == gs://* ]] || die '--preflight needs the --config=... of the run, after --'
    flags+=("--config=$workdir")
  fi
  for word in "$@"; do # of the program's flags those of the config, and words that are a value of one
    if [[ $word =~ ^--?(no)?config([.=]|$) ]]; then keep=true; elif [[ $word == -* ]]; then keep=false; fi
    if $keep; then flags+=("$word"); fi
  done
  need "$python" 'activate the environment, or set PYTHON'
  case "$python" in /*) ;; */*) python="$PWD/$python" ;; esac
  flags+=("--on=$generation:$topology" ${stand_in:+"--stand_in=$stand_in"})
  # In the checkout, as the workers run it in their copy.
  run env -C "$ROOT" "$python" -m dnt.rehearse "${flags[@]}" || code=$?
  if ((code)); then
    printf 'tpu_pod.sh: the preflight ended with exit code %s; nothing was done on the cloud\n' "$code" >&2
    exit "$code"
  fi
}

AGAIN='remove create copy install start follow'
# Starts the run and follows it to its end; makes a slice that was preempted again and goes on there.
train() {
  local code=0 state='' step='' steps='start follow' began=0 restarts=0
  if $recreate && ! $DRY_RUN; then
    state="$(slice_state)"
    case "$state" in PREEMPTED | TERMINATED | SUSPENDED) say_again; steps="$AGAIN" ;; esac
  fi
  while [[ -n $steps ]]; do
    step="${steps%% *}" state=''
    if [[ $step == start ]]; then began=$SECONDS; fi
    attempt "$step" "$@"
    if ((code == 0)); then
      steps="${steps#"$step"}"
      steps="${steps# }"
      continue
    fi
    if ! $recreate; then break; fi
    case "$step:$code" in remove:* | follow:2) break ;; esac
    if ((code == NO_CAPACITY)) && [[ $step == create ]]; then
      echo 'tpu_pod.sh: there was no slice to be had; it is requested every few minutes, until there is one or Ctrl-C ends this' >&2
    fi
    sleep "$NOTICE"
    settle
    case "$state:$step:$code" in
      READY:follow:255) ;; # the connection was lost
      READY:follow:*) # those that go on end when another one is lost
        ((code == VANISHED)) || has_vanished || break
        if ((SECONDS - began >= SHORT)); then restarts=0; fi
        if ((restarts == 3)); then
          printf 'tpu_pod.sh: the run ended without an exit code within minutes of its last three starts (a full disk? it crashes its machine?), and does not go on; %s remains\n' "$name" >&2
          break
        fi
        restarts=$((restarts + 1))
        printf 'tpu_pod.sh: a machine of %s has restarted, or its run was killed; the run goes on from its last checkpoint\n' "$name" >&2
        steps='start follow'
        ;;
      :create:"$NO_CAPACITY") ;;
      READY:create:*) steps="${steps#create }" ;;
      READY:* | :*) break ;;
      *) say_again; steps="$AGAIN" ;;
    esac
  done
  if $recreate && $DRY_RUN; then
    echo '# after a preemption:'
    for step in $AGAIN; do "$step" "$@"; done
  fi
  if ((code)) && [[ $step != follow ]]; then
    printf 'tpu_pod.sh: %s failed with exit code %s%s; the run does not go on\n' "$step" "$code" "${state:+, and $name is $state}" >&2
  elif $recreate && ((code != 0 && code != 2)) && [[ -z $state ]]; then
    printf 'tpu_pod.sh: nothing says what state %s is in; the run does not go on\n' "$name" >&2
  fi
  finish "$code"
}

# Calls a function and sets `code` to its exit code. The subshell ends at the first command that fails; in a condition, such
# as before ||, bash would go on.
attempt() {
  set +e
  (trap 'exit 130' INT; set -e; "$@")
  code=$?
  set -e
}

say_again() {
  printf 'tpu_pod.sh: %s is %s; it is made again, and the run goes on from its last checkpoint\n' "$name" "$state" >&2
}

finish() {
  exit "$(($1 == VANISHED ? 1 : $1))"
}

# After Ctrl-C.
interrupted() {
  local words
  if [[ $action == create ]] || $recreate; then
    words=("$0" delete "--name=$name" "${place[@]}")
    if $queued; then words+=(--queued); fi
    printf 'tpu_pod.sh: %s, or the request for it, may remain and be billed; this deletes it:\n%s\n' "$name" "$(quoted "${words[@]}")" >&2
  fi
  exit 130
}

remove() {
  delete --quiet # nobody is there to answer
}

if [[ $action == create || $action == run ]]; then check_program_flags GIT "$@"; fi
if [[ $action == run ]]; then
  workdir="$(flag_of workdir "$@")"
  [[ $workdir == /* || $workdir == gs://?*/?* ]] ||
    die "--workdir='$workdir' must be gs://BUCKET/PATH, or an absolute path that all workers share, such as /mnt/dnt/run1"
fi
if $preflight; then rehearse "$@"; fi
if [[ $action == create || $action == run ]]; then trap interrupted INT; fi
case "$action" in
  create | copy | install) "$action" ;;
  run) train "$@" ;;
  resume)
    on all 'bash ~/dnt-run/start.sh'
    follow || finish "$?"
    ;;
  stop)
    # shellcheck disable=SC2016 # for the worker's shell
    on all "$GOING"'if going; then kill -TERM "$pid"; else echo "$(hostname): no run is going on" >&2; exit 1; fi'
    ;;
  status)
    if $queued; then queue describe "$name" '--format=value(state.state)'; fi
    tpu describe "$name" '--format=value(state,health,acceleratorType)'
    on all "$HOW"
    ;;
  fetch)
    ((${#paths[@]} == 1 || ${#paths[@]} == 2)) || die 'fetch REMOTE_DIR [LOCAL_DIR]'
    target="${paths[1]:-runs}"
    there="$target/$(basename "${paths[0]}")"
    [[ ! -e $there ]] || die "$there is there already, and would be mixed with what is fetched; name another LOCAL_DIR"
    $DRY_RUN || mkdir -p "$target"
    tpu scp "$name:${paths[0]}" "$target" --recurse --worker=0
    ;;
  delete) delete ;;
esac
