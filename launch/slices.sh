# shellcheck shell=bash
# TPU slices: their topologies, chips and hosts by name. Sourced, not run, after lib.sh.

# Topologies of TPU slices, with the docs that list them:
#   v5e, v6e  cloud.google.com/tpu/docs/v5e and v6e: the whole list
#   v4, v5p   cloud.google.com/tpu/docs/v4, v5p and types-topologies: the four below a cube of 4x4x4 chips; above it
#             AxBxC with A <= B <= C, each a multiple of 4
FLAT='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
BELOW_A_CUBE='2x2x1 2x2x2 2x2x4 2x4x4'

# Whether a generation has a topology.
has_topology() { # GENERATION TOPOLOGY
  case "$1" in
    v5e | v6e) [[ " $FLAT " == *" $2 "* ]] ;;
    *)
      [[ " $BELOW_A_CUBE " == *" $2 "* ]] ||
        { [[ $2 =~ ^([1-9][0-9]*)x([1-9][0-9]*)x([1-9][0-9]*)$ ]] &&
          ((BASH_REMATCH[1] % 4 + BASH_REMATCH[2] % 4 + BASH_REMATCH[3] % 4 == 0)) &&
          ((BASH_REMATCH[1] <= BASH_REMATCH[2] && BASH_REMATCH[2] <= BASH_REMATCH[3])); }
      ;;
  esac
}

# The chips of a topology that has_topology accepts.
chips_of() {
  printf '%s' "$((${1//x/*}))"
}

# The topology that a slice of so many chips has; nothing if there is no such slice. Several cubes are as close to one large
# cube as they can be (cloud.google.com/tpu/docs/v5p: 4x4x8, 4x8x8, 8x8x8, ...).
topology_of() { # GENERATION CHIPS
  local topology a b cubes="$(($2 / 64))" least='' known="$BELOW_A_CUBE"
  case "$1" in v5e | v6e) known="$FLAT" cubes=0 ;; esac
  for topology in $known; do
    if (($(chips_of "$topology") == $2)); then printf '%s' "$topology"; return; fi
  done
  if (($2 % 64)); then return; fi
  for ((a = 1; a * a * a <= cubes; a++)); do
    for ((b = a; a * b * b <= cubes; b++)); do
      if ((cubes % (a * b) == 0)) && { [[ -z $least ]] || ((a + b + cubes / (a * b) < least)); }; then
        least=$((a + b + cubes / (a * b)))
        topology="$((4 * a))x$((4 * b))x$((4 * cubes / (a * b)))"
      fi
    done
  done
  if [[ -n $least ]]; then printf '%s' "$topology"; fi
}

# Sets `generation`, `topology`, `chips` and `hosts` of a Cloud TPU type. A v5litepod or v6e counts chips, a v4 or v5p
# TensorCores, two a chip (cloud.google.com/tpu/docs/v5e, v6e, v4, v5p). A host has 4 chips; up to 8 of v5e or v6e are one
# host (the tables of VMs there). Returns 1 if the type is of another generation.
describe_slice() { # TYPE
  local unit=chips size
  [[ $1 != v5e-* ]] || die "--type=$1: Cloud TPU calls it v5litepod-${1#v5e-}"
  [[ $1 =~ ^(v4|v5litepod|v5p|v6e)-([1-9][0-9]*)$ ]] || return 1
  generation="${BASH_REMATCH[1]/litepod/e}" size="${BASH_REMATCH[2]}"
  chips="$size" topology=''
  case "$generation" in v4 | v5p) unit='TensorCores, two a chip'; chips=$((size / 2)) ;; esac
  if [[ $unit == chips ]] || ((size % 2 == 0)); then topology="$(topology_of "$generation" "$chips")"; fi
  if [[ -z $topology ]]; then
    case "$unit" in
      chips) die "there is no slice --type=$1; its number counts chips: 1, 4, 8, 16, 32, 64, 128 or 256" ;;
      *) die "there is no slice --type=$1; its number counts $unit: 8, 16, 32, 64 or a multiple of 128" ;;
    esac
  fi
  # shellcheck disable=SC2034 # for those who source this
  if [[ $unit == chips ]] && ((chips <= 8)); then hosts=1; else hosts=$((chips / 4)); fi
}

# The runtime of a Cloud TPU type (cloud.google.com/tpu/docs/runtimes).
runtime_of() {
  case "$1" in
    v2-* | v3-* | v4-*) printf tpu-ubuntu2204-base ;;
    v5litepod-*) printf v2-alpha-tpuv5-lite ;;
    v5p-*) printf v2-alpha-tpuv5 ;;
    v6e-*) printf v2-alpha-tpuv6e ;;
    *) return 1 ;;
  esac
}
