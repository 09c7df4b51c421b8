# shellcheck shell=bash
# What the launchers share: messages, checks of the input, and --dry-run. Sourced, not run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN=false

# Bad input: one line, exit code 2, nothing was run.
die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 2
}

# The comment at the top of the script is its help.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 0
}

# The words as a shell would read them back.
quoted() {
  local word between='' quote="'\\''"
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      printf '%s%s' "$between" "$word"
    else
      printf "%s'%s'" "$between" "${word//\'/$quote}"
    fi
    between=' '
  done
}

# Runs a command, or prints it.
run() {
  if $DRY_RUN; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

need() {
  $DRY_RUN || command -v "$1" > /dev/null || die "$1 is not in PATH: $2"
}

# The value in NAME=VALUE.
value() {
  printf '%s' "${1#*=}"
}

# Whether an exit code means that a signal (SIGHUP, SIGINT, SIGTERM) has stopped the program, which saved before.
is_stop() {
  [[ $1 == 129 || $1 == 130 || $1 == 143 ]]
}

# Refuses what is no name of the given form: a quote or a space would end up in another program's input.
check_name() { # OPTION VALUE REGEX WHAT
  [[ $2 =~ ^($3)$ ]] || die "$1='$2' must be $4"
}

check_count() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 must be a whole number of at least 1, not '$2'"
}

# The program's flags: there must be such a config, and what the launcher sets must not be set twice.
check_program_flags() {
  local flag config='' previous='' file
  for flag in "$@"; do
    [[ $flag != *[[:cntrl:]]* ]] || die "$(printf '%q' "$flag") holds a line break or another control character"
    case "$flag" in
      --distributed* | --coordinator* | --num_processes* | --process_id*)
        die "$flag is set by the launcher; leave it out" ;;
      --config=*) config="$(value "$flag")" ;;
      *) if [[ $previous == --config ]]; then config="$flag"; fi ;;
    esac
    previous="$flag"
  done
  # A config file may take an argument (path/to/config.py:argument), and one of dnt's own needs no more than its name.
  file="${config%.py:*}"
  # Of the workdir of a run it is config.json. What is in a bucket or below /mnt/dnt need not be seen from here.
  case "$config" in '' | gs://* | /mnt/dnt/*) return 0 ;; esac
  if [[ ! -f $file && ! -f $file.py && ! -f $ROOT/configs/${file%.py}.py && ! -f $config/config.json ]]; then
    die "no config file and no workdir of a run '$config'; there are: $(cd "$ROOT" && echo configs/*.py)"
  fi
}

# The value of --workdir in the program's flags.
workdir_of() {
  local flag
  for flag in "$@"; do
    case "$flag" in --workdir=*) value "$flag" ;; esac
  done
}

# The words as a JSON list, which YAML reads too.
json_list() {
  local word between=''
  printf '['
  for word in "$@"; do
    word="${word//\\/\\\\}"
    printf '%s"%s"' "$between" "${word//\"/\\\"}"
    between=', '
  done
  printf ']'
}
