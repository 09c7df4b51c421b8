# shellcheck shell=bash
# What the launchers share: messages, checks of the input, and --dry-run. Sourced, not run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN=false
# The newest Python that README names as tested, with constraints of its own, for environments that are made elsewhere.
# shellcheck disable=SC2034 # for those who source this
PYTHON_VERSION=3.13

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

# The value of a flag of the program, which takes --NAME=VALUE and --NAME VALUE, with one hyphen or two; the last one counts.
flag_of() { # NAME FLAGS
  local name="$1" word found='' next=false
  shift
  for word in "$@"; do
    if $next; then
      found="$word" next=false
    elif [[ $word =~ ^--?$name(=|$) ]]; then
      case "$word" in *=*) found="$(value "$word")" ;; *) next=true ;; esac
    fi
  done
  printf '%s' "$found"
}

# Prints the file of a config as the program finds it in a folder; returns 1 if there is none. It is a file, which may take an
# argument (path/to/config.py:argument), config.json in the workdir of a run, or one of dnt's own, which needs but its name,
# with or without configs/.
config_file() { # FOLDER CONFIG
  local file name="${2%%:*}"
  for file in "$2" "$name" "$2/config.json"; do
    if (cd "$1" && [[ -f $file ]]); then
      printf '%s' "$file"
      return
    fi
  done
  case "$name" in configs/* | ./configs/*) name="${name#*configs/}" ;; esac
  file="configs/${name%.py}.py"
  [[ $name != */* && -f $ROOT/$file ]] && printf '%s' "$file"
}

# The program's flags: what the launcher sets must not be set twice, and there must be such a config where the program runs:
# HERE is this folder; GIT is a copy of what git does not ignore of this checkout, and IMAGE one of the checkout, each on
# machines that have nothing else of this one.
check_program_flags() { # HERE|GIT|IMAGE FLAGS
  local where="$1" flag config file
  shift
  for flag in "$@"; do
    [[ $flag != *[[:cntrl:]]* ]] || die "$(printf '%q' "$flag") holds a line break or another control character"
    [[ ! $flag =~ ^--?(no)?(distributed|coordinator|num_processes|process_id)(=|$) ]] ||
      die "$flag is set by the launcher; leave it out"
  done
  config="$(flag_of config "$@")"
  # What is in a bucket or below /mnt/dnt need not be seen from here.
  case "$config" in
    gs://*.py | gs://*.py:* | gs://*.json) die "--config='$config': of a bucket, dnt takes the workdir of a run and no file" ;;
    '' | gs://* | /mnt/dnt/*) return 0 ;;
  esac
  if [[ $where == HERE ]]; then
    [[ $config != \~/* ]] || config="$HOME/${config:2}"
    config_file . "$config" > /dev/null || no_config "$config"
    return 0
  fi
  if ! file="$(config_file "$ROOT" "$config")"; then
    config_file . "$config" > /dev/null || no_config "$config"
    stays_here "$config"
  fi
  case "/$file/" in //* | */../*) stays_here "$config" ;; esac
  [[ $where == IMAGE ]] || is_copied "$file" || stays_here "$config"
}

# Whether git, where this is its checkout, knows a file or would take it.
is_copied() {
  ! git -C "$ROOT" rev-parse --git-dir > /dev/null 2>&1 ||
    [[ -n $(git -C "$ROOT" --literal-pathspecs ls-files --cached --others --exclude-standard -- "$1") ]]
}

no_config() {
  die "no config file and no workdir of a run '$1'; there are: $(cd "$ROOT" && echo configs/*.py)"
}

stays_here() {
  die "--config='$1' is not in the checkout that the machines get ($ROOT), where the program runs: copy it, or of a workdir its config.json, to configs/ and give the path from there (configs/mine.json), or give the workdir of a run in a bucket (gs://BUCKET/PATH)"
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
