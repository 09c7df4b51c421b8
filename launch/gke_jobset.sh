#!/usr/bin/env bash
# Runs one training on a TPU slice of a GKE cluster, as a JobSet (jobset.sigs.k8s.io must be installed there, from 0.6 on).
#
#   launch/gke_jobset.sh --name=NAME --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=4x4
#     [--claim=PVC] [--hosts=4] [--chips=4] [--dry-run] -- --config=... --workdir=gs://... [flags]
#
#   --image=IMAGE         holds this checkout as its working directory, with the requirements, jax[tpu] and gcsfs, and for
#                         weights of the hub (hf:...) huggingface_hub
#   --claim=PVC           the persistent volume claim (ReadWriteMany) that is mounted at /mnt/dnt on every host, for data
#                         or, if it is a file system such as Filestore's and no mounted bucket, for --workdir=/mnt/dnt/...
#   --accelerator=, --topology=   the node pool's labels cloud.google.com/gke-tpu-accelerator and gke-tpu-topology
#   --hosts=N, --chips=K  hosts of the slice, and TPU chips of each: what the topology asks for, with up to 4 chips a host
#                         (8 only where one host is the slice, 2x4 of v5e and v6e)
#   --dry-run             prints the JobSet
#
# After a warning (a drain) the run saves and ends with exit code 143. That counts as stopped and not as failed: Kubernetes
# starts its pods again, and the run goes on. A node that is lost without warning restarts the JobSet, up to ten times: the
# run goes on from its last checkpoint. Bad input (exit code 2) fails the JobSet at once. After kubectl delete jobset NAME
# the run saves and ends; the same command starts it again. To follow it: kubectl logs -f -l
# jobset.sigs.k8s.io/jobset-name=NAME
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=slices.sh
source "$(dirname "${BASH_SOURCE[0]}")/slices.sh"

name='' image='' claim='' accelerator='' topology=''
unset hosts chips # the topology says how many, if the options do not
while (($#)); do
  case "$1" in
    -h | --help) usage ;;
    --dry-run) DRY_RUN=true ;;
    --name=*) name="$(value "$1")" ;;
    --image=*) image="$(value "$1")" ;;
    --claim=*) claim="$(value "$1")" ;;
    --accelerator=*) accelerator="$(value "$1")" ;;
    --topology=*) topology="$(value "$1")" ;;
    --hosts=*) hosts="$(value "$1")" ;;
    --chips=*) chips="$(value "$1")" ;;
    --) shift; break ;;
    *) die "unknown option '$1'; the program's own flags stand after --; see --help" ;;
  esac
  shift
done
check_name --name "$name" '[a-z]([-a-z0-9]{0,40}[a-z0-9])?' 'lower-case letters, digits and hyphens, starting with a letter'
[[ -n $image && -n $accelerator ]] || die '--image and --accelerator are needed; see --help'
check_name --image "$image" '[A-Za-z0-9][A-Za-z0-9._/:@-]*' 'the name of an image, such as europe-docker.pkg.dev/project/repository/dnt:1'
check_name --claim "$claim" '|[a-z0-9]([-a-z0-9.]*[a-z0-9])?' 'the name of a claim: lower-case letters, digits, hyphens and dots'

# cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus; tpu7x has the topologies of v5p.
case "$accelerator" in
  tpu-v4-podslice) generation=v4 ;;
  tpu-v5-lite-podslice) generation=v5e ;;
  tpu-v5p-slice | tpu7x) generation=v5p ;;
  tpu-v6e-slice) generation=v6e ;;
  *) die "--accelerator='$accelerator' must be tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice or tpu7x" ;;
esac
if ! has_topology "$generation" "$topology"; then
  case "$generation" in
    v5e | v6e) die "--topology='$topology' must be one that $accelerator has: ${FLAT// /, }" ;;
    *) die "--topology='$topology' must be one that $accelerator has: ${BELOW_A_CUBE// /, }, or AxBxC such as 4x4x8, of ascending multiples of 4" ;;
  esac
fi
all="$(chips_of "$topology")"
usual=$((all < 4 ? all : 4))
chips="${chips-$usual}"
check_count --chips "$chips"
((chips == usual)) || [[ $topology == 2x4 && $chips == 8 ]] ||
  die "--chips=$chips: a host of $accelerator $topology has $usual$([[ $topology != 2x4 ]] || echo ' or 8')"
hosts="${hosts-$((all / chips))}"
check_count --hosts "$hosts"
((hosts * chips == all)) ||
  die "--hosts=$hosts and --topology=$topology disagree: $all chips, $chips a host, are on --hosts=$((all / chips))"

check_program_flags IMAGE "$@"
workdir="$(flag_of workdir "$@")"
[[ $workdir == gs://?*/?* || (-n $claim && $workdir == /mnt/dnt/*) ]] ||
  die "--workdir='$workdir' must be gs://BUCKET/PATH, or with --claim below /mnt/dnt, where all hosts see the claim"
[[ -n $claim || $(flag_of config "$@") != /mnt/dnt/* ]] || die '--config=/mnt/dnt/... needs --claim, which is mounted there'
need kubectl 'install it, and get credentials: gcloud container clusters get-credentials'

# Kubernetes replaces $(NAME) in a command, and reads $$ as $.
jobset() {
  cat << YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 10
    rules:
    # Only bad input, which a restart would not mend, fails the job for this reason; a lost process (1) does not.
    - name: badInput
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: 1
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        podFailurePolicy:
          rules:
          # Stopped by a signal (SIGHUP, SIGINT, SIGTERM) after a save: no failure, and a new pod goes on.
          - action: Ignore
            onExitCodes:
              containerName: dnt
              operator: In
              values: [129, 130, 143]
          - action: FailJob
            onExitCodes:
              containerName: dnt
              operator: In
              values: [2]
        template:
          spec:
            restartPolicy: Never
            # Between SIGTERM and SIGKILL: the time to agree on a step and to save.
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: "$accelerator"
              cloud.google.com/gke-tpu-topology: "$topology"
            containers:
            - name: dnt
              image: "$image"
              command: $(json_list python -m dnt.main "${@//\$/\$\$}" --distributed)
              env:
              - name: PYTHONUNBUFFERED
                value: "1"
              # Without it, an image that lacks jax[tpu] would train on the CPUs.
              - name: JAX_PLATFORMS
                value: "tpu,cpu"
              resources:
                limits:
                  google.com/tpu: $chips
YAML
  if [[ -n $claim ]]; then
    cat << YAML
              volumeMounts:
              - name: shared
                mountPath: /mnt/dnt
            volumes:
            - name: shared
              persistentVolumeClaim:
                claimName: "$claim"
YAML
  fi
}

if $DRY_RUN; then
  jobset "$@"
else
  jobset "$@" | kubectl apply -f -
fi
