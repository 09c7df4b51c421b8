#!/usr/bin/env bash
# Runs one training in several processes on this machine.
#
#   launch/local.sh -n 2 [--devices-per-process=4] [--module=dnt.main] [--dry-run] -- --config=... --workdir=... [flags]
#
#   -n N                      processes
#   --devices-per-process=K   forces K CPU devices a process; of GPUs, process i gets the numbers i*K to i*K + K-1, or those
#                             at these places of CUDA_VISIBLE_DEVICES if it is set; none if that is empty or -1
#   --module=NAME             the program (python -m NAME); default dnt.main
#   --dry-run                 prints what would run
#
# PYTHON names the interpreter (default: python). Everything after -- goes to the program as it is. Each line of output
# is marked with its process. Ctrl-C, SIGTERM and SIGHUP are handed on: the processes agree on a step, save and end together
# with 130, 143 or 129, as does the launcher; a second Ctrl-C ends them at once. When one process fails the others are
# ended, and its exit code is the launcher's.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

GRACE=2 # seconds for the others to say what they have to say after one has failed

again="$(quoted "$0" "$@")"
count='' devices='' module=dnt.main
while (($#)); do
  case "$1" in
    -h | --help) usage ;;
    -n) (($# > 1)) || die '-n needs a number'; count="$2"; shift ;;
    --devices-per-process=*) devices="$(value "$1")" ;;
    --devices-per-process) (($# > 1)) || die "$1 needs a number"; devices="$2"; shift ;;
    --module=*) module="$(value "$1")" ;;
    --dry-run) DRY_RUN=true ;;
    --) shift; break ;;
    *) die "unknown option '$1'; the program's own flags stand after --; see --help" ;;
  esac
  shift
done
[[ -n $count ]] || die 'how many processes? -n N; see --help'
check_count -n "$count"
if [[ -n $devices ]]; then check_count --devices-per-process "$devices"; fi
check_program_flags HERE "$@"
python="${PYTHON:-python}"
need "$python" 'activate the environment, or set PYTHON'

hidden=false # whether the user hides all GPUs
case "${CUDA_VISIBLE_DEVICES-unset}" in '' | -1) hidden=true ;; esac
# The GPUs to give out; none if it is not known how many there are, or jax does not use them.
gpus=()
if [[ -n $devices && ${JAX_PLATFORMS:-} != cpu ]] && ! $hidden; then
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
  elif listed="$(nvidia-smi --query-gpu=index --format=csv,noheader 2> /dev/null)"; then
    while read -r line; do if [[ $line =~ ^[0-9]+$ ]]; then gpus+=("$line"); fi; done <<< "$listed"
  fi
  ((${#gpus[@]} == 0 || ${#gpus[@]} >= count * devices)) ||
    die "-n $count and --devices-per-process=$devices need $((count * devices)) GPUs; there are ${#gpus[@]} (${gpus[*]})"
fi

free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000)) # below the range that outgoing connections use
    (: > "/dev/tcp/127.0.0.1/$port") 2> /dev/null || break
  done
  printf '%s' "$port"
}

# The command of process $1 in the array `command`.
make_command() {
  local index="$1" mine
  shift
  command=(env "PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 "DNT_COMMAND=$again")
  if [[ -n $devices ]]; then
    command+=("XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices")
    mine="$(seq -s, $((index * devices)) $((index * devices + devices - 1)))"
    if ((${#gpus[@]})); then mine="$(IFS=,; echo "${gpus[*]:index * devices:devices}")"; fi
    $hidden || command+=("CUDA_VISIBLE_DEVICES=$mine")
  fi
  command+=("$python" -m "$module" "$@" --distributed "--coordinator=127.0.0.1:$port")
  command+=("--num_processes=$count" "--process_id=$index")
}

port="$(free_port)"
if $DRY_RUN; then
  for ((i = 0; i < count; i++)); do
    make_command "$i" "$@"
    run "${command[@]}"
  done
  exit 0
fi

# Outlives every signal, so that nothing of what is said after one is lost.
label() {
  local line
  trap '' INT TERM HUP
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

pids=() readers=() alive=()
pipes="$(mktemp -d)"

# Also reached by `exit` and by errors: leaves nothing behind, workers of the processes included.
# shellcheck disable=SC2317,SC2329 # the trap calls it
clean_up() {
  local pid
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2> /dev/null || true; done
  for pid in "${readers[@]}"; do wait "$pid" 2> /dev/null || true; done
  rm -rf "$pipes"
}
trap clean_up EXIT

hand_on() {
  local i
  for i in "${alive[@]}"; do kill "-$1" "${pids[i]}" 2> /dev/null || true; done
}
for signal in INT TERM HUP; do
  # shellcheck disable=SC2064 # the name of this signal
  trap "hand_on $signal" "$signal"
done

# Job control gives each process a group of its own: a Ctrl-C at the terminal then reaches this script alone, which
# hands it on once. Twice would mean: stop at once.
set -m
for ((i = 0; i < count; i++)); do
  make_command "$i" "$@"
  mkfifo "$pipes/$i"
  label "$i" < "$pipes/$i" &
  readers+=("$!")
  "${command[@]}" > "$pipes/$i" 2>&1 < /dev/null &
  pids+=("$!")
  alive+=("$i")
done
set +m

exec 3>&2 2> /dev/null # bash's own line for each job that a signal ended; ours says more
first_code=0 deadline='' signal=KILL
while ((${#alive[@]})); do
  sleep 0.1 &
  wait "$!" || true
  still=()
  for i in "${alive[@]}"; do
    if kill -0 "${pids[i]}" 2> /dev/null; then
      still+=("$i")
      continue
    fi
    code=0
    wait "${pids[i]}" 2> /dev/null || code=$?
    if ((code == 0 || first_code != 0)); then continue; fi
    first_code=$code
    deadline=$((SECONDS + GRACE))
    how="exit code $code"
    if ((code > 128)); then how+=" (SIG$(kill -l $((code - 128)) 2> /dev/null || echo '?'))"; fi
    if is_stop "$code"; then
      signal=$((code - 128))
      printf 'local.sh: process %s stopped with %s; all end together, and the same command goes on\n' "$i" "$how" >&3
    else
      signal=KILL
      how+='; ending the others'
      printf 'local.sh: process %s ended with %s\n' "$i" "$how" >&3
    fi
  done
  alive=(${still[@]+"${still[@]}"})
  if [[ -n $deadline ]] && ((SECONDS > deadline)); then
    hand_on "$signal" # a process that goes on after another has stopped had nothing to save, and has received no signal
    signal=KILL
    deadline=$((SECONDS + GRACE + GRACE))
  fi
done
exit "$first_code"
