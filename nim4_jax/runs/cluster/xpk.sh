# $stage on $accelerator: bash THIS
# Exit code 2 is wrong input; all else starts the pods again with the same command.
xpk workload create --cluster="$${CLUSTER:?name of the XPK cluster}" \
  --workload=$name --tpu-type=$machine --num-slices=1 --docker-image=$image \
  --storage=$bucket_name --max-restarts=100 --restart-on-exit-codes=1,75,76 \
  --termination-grace-period-seconds=300 \
  --command=$command
